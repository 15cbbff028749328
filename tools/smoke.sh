#!/bin/sh
# A tick for each thing that works on a running Frontdesk; status 1 if one does not.
#   tools/smoke.sh https://desk.example
url=${1:-http://localhost:8000}
url=${url%/}
page=/smoke-test # the page that is counted
failed=0

# ask NAME PATTERN CURL-ARGUMENTS...: a tick where the answer's text has the pattern.
# A free service may have to wake up first: 60 seconds.
ask() {
  name=$1 pattern=$2
  shift 2
  answer=$(curl -sS --max-time 60 "$@" 2>&1)
  if printf '%s' "$answer" | grep -Eqi "$pattern"; then
    echo "✓ $name"
  else
    echo "✗ $name: $(printf '%s' "$answer" | head -c 300 | tr '\r\n' '  ')"
    failed=1
  fi
}

ask health '"status": "ok"' "$url/health"
ask preflight '^access-control-allow-methods: .*POST' -i -X OPTIONS "$url/contact" \
  -H "Origin: $url" -H 'Access-Control-Request-Method: POST' \
  -H 'Access-Control-Request-Headers: content-type'
# The filled honeypot keeps it from being mailed.
ask contact '"ok": true.*"id": "' "$url/contact" -d email=smoke@example.com \
  -d message='Smoke test' -d _gotcha=x
ask hit '"counted": true' "$url/hits" -d "page=$page"
ask read '"hits": [1-9]' "$url/hits?page=$page"
exit $failed
