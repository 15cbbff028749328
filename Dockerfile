# The data is in /data: mount a volume there, or set DATABASE_URL to a Postgres.
FROM python:3.13-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt && pip uninstall -qy pip \
 && useradd --system --uid 10001 frontdesk && install -d -o frontdesk /data
COPY . .
USER frontdesk
ENV DATABASE_URL=sqlite:////data/frontdesk.db PORT=8000 PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --start-period=10s --timeout=5s CMD ["python", "-c", \
 "import os, urllib.request as r; r.urlopen('http://localhost:' + os.environ['PORT'] + '/health')"]
CMD ["gunicorn", "--config", "gunicorn.conf.py"]
