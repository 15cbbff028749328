"""Form services' own clients, unchanged but for the address they talk to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Desk, Site, Tab

OpenDesk = Callable[..., Desk]
OpenTab = Callable[..., Tab]

ON_ITS_WAY = "Thank you, your message is on its way."


@pytest.fixture
def formspree(site: Site, modules: Path) -> str:
    """The example with Formspree's script tag; return its address."""
    library = modules / "@formspree" / "ajax" / "dist" / "global.js"
    site.files["/formspree.js"] = library.read_bytes()
    return f"{site.url}/index-formspree.html"


def fill(page: Page, email: str = "ada@example.com", message: str = "Hello") -> None:
    page.get_by_label("Your email").fill(email)
    page.get_by_label("Your name").fill("Ada")
    page.get_by_label("Message").fill(message)


def test_formspree_ajax_shows_success_and_the_owner_gets_the_mail(
    formspree: str, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    tab.page.goto(formspree)
    fill(tab.page)
    tab.page.get_by_role("button", name="Send").click()
    expect(tab.page.get_by_role("status")).to_contain_text("your message has arrived")
    expect(tab.page.get_by_role("alert")).to_be_hidden()
    expect(tab.page.get_by_label("Message")).to_have_value("")  # the form was reset
    assert tab.console == []
    mail = desk.mailjet.wait(1)[0].message
    assert mail["ReplyTo"] == {"Email": "ada@example.com", "Name": "Ada"}
    assert "Hello" in mail["TextPart"]


def test_formspree_ajax_shows_field_errors_at_their_fields(
    formspree: str, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    tab.page.goto(formspree)
    fill(tab.page, email="ada@example", message="x" * 10_001)  # Chromium lets it pass
    tab.page.get_by_role("button", name="Send").click()
    for name, text in (("email", "valid email address"), ("message", "At most 10,000")):
        expect(tab.page.locator(f"[data-fs-error={name}]")).to_contain_text(text)
        field = tab.page.locator(f"[name={name}]")
        expect(field).to_have_attribute("aria-invalid", "true")
    expect(tab.page.get_by_label("Your email")).to_have_value("ada@example")
    expect(tab.page.get_by_role("status")).to_be_hidden()
    assert tab.complaints == []

    fill(tab.page)
    tab.page.get_by_role("button", name="Send").click()
    expect(tab.page.get_by_role("status")).to_be_visible()
    expect(tab.page.locator("[data-fs-error=email]")).to_be_hidden()
    assert len(desk.mailjet.wait(1)) == 1


def test_formspree_ajax_shows_the_rate_limit_as_an_error_of_the_form(
    formspree: str, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    open_desk(CONTACT_LIMIT="1/hour")
    tab = open_tab()
    tab.page.goto(formspree)
    fill(tab.page)
    tab.page.get_by_role("button", name="Send").click()
    expect(tab.page.get_by_role("status")).to_be_visible()
    fill(tab.page, message="One more thing")
    tab.page.get_by_role("button", name="Send").click()
    expect(tab.page.get_by_role("alert")).to_have_text(
        re.compile(r"Too many requests, please try again in [\d,]+ seconds\.")
    )
    expect(tab.page.get_by_label("Message")).to_have_value("One more thing")
    assert tab.complaints == []


def test_formspree_ajax_shows_an_error_on_a_page_of_somebody_else(
    formspree: str, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    # Without CORS headers a script cannot read why: the library shows the browser's
    # own words, and the browser explains in its console.
    desk, tab = open_desk(ALLOWED_ORIGINS="https://owner.example"), open_tab()
    tab.page.goto(formspree)
    fill(tab.page)
    tab.page.get_by_role("button", name="Send").click()
    expect(tab.page.get_by_role("alert")).to_have_text("Failed to fetch")
    expect(tab.page.get_by_label("Message")).to_have_value("Hello")
    assert desk.mailjet.requests == []


@pytest.mark.parametrize("project", ["", "{project: 'site'}"], ids=["form", "project"])
@pytest.mark.parametrize("data", ["form", "Object.fromEntries(form)"])
def test_formspree_core_reads_success_and_errors(
    project: str,
    data: str,
    site: Site,
    modules: Path,
    open_desk: OpenDesk,
    open_tab: OpenTab,
) -> None:
    core = modules / "@formspree" / "core" / "dist" / "index.mjs"
    site.files["/core.mjs"] = core.read_bytes()
    site.files["/core.html"] = "<!doctype html><title>Core</title>"
    desk, tab = open_desk(), open_tab()
    tab.page.goto(f"{site.url}/core.html")
    submit = f"""async (values) => {{
        const {{createClient, isSubmissionError}} = await import('/core.mjs');
        const form = new FormData();
        for (const [name, value] of Object.entries(values)) form.append(name, value);
        const result = await createClient({project}).submitForm(
            'contact', {data}, {{endpoint: '{desk.url}'}});
        return isSubmissionError(result)
            ? {{form: result.getFormErrors(), fields: result.getAllFieldErrors()}}
            : result;
    }}"""
    good = {"email": "ada@example.com", "message": "Hello"}
    success = tab.page.evaluate(submit, good)
    assert success == {"kind": "success", "next": f"{desk.url}/thanks"}
    error = tab.page.evaluate(submit, good | {"email": "ada"})
    message = "This is not a valid email address."
    wrong = ["email", [{"code": "TYPE_EMAIL", "message": message}]]
    assert error == {"form": [], "fields": [wrong]}
    empty = tab.page.evaluate(submit, {})
    assert [e["code"] for e in empty["form"]] == ["EMPTY"]
    assert tab.complaints == []


# What the services' documentation tells to paste, with the address replaced.
FORMSPREE_FETCH = """
<form id="my-form" action="SERVICE/f/contact" method="POST">
  <label>Email: <input type="email" name="email"></label>
  <label>Message: <input type="text" name="message"></label>
  <button id="my-form-button">Submit</button>
  <p id="result"></p>
</form>
<script>
  var form = document.getElementById("my-form");
  async function handleSubmit(event) {
    event.preventDefault();
    var status = document.getElementById("result");
    var data = new FormData(event.target);
    fetch(event.target.action, {
      method: form.method,
      body: data,
      headers: {'Accept': 'application/json'}
    }).then(response => {
      if (response.ok) {
        status.innerHTML = "Thanks for your submission!";
        form.reset()
      } else {
        response.json().then(data => {
          if (Object.hasOwn(data, 'errors')) {
            status.innerHTML = data["errors"].map(error => error["message"]).join(", ")
          } else {
            status.innerHTML = "Oops! There was a problem submitting your form"
          }
        })
      }
    }).catch(error => {
      status.innerHTML = "Oops! There was a problem submitting your form"
    });
  }
  form.addEventListener("submit", handleSubmit)
</script>
"""
WEB3FORMS = """
<form action="SERVICE/contact" method="POST" id="form">
  <input type="hidden" name="access_key" value="YOUR_ACCESS_KEY_HERE">
  <input type="hidden" name="subject" value="New Submission from Web3Forms">
  <input type="checkbox" name="botcheck" id="" style="display: none;">
  <label>Email <input type="email" name="email" required></label>
  <label>Message <textarea name="message" required></textarea></label>
  <button type="submit">Submit Form</button>
  <div id="result"></div>
</form>
<script>
const form = document.getElementById('form');
const result = document.getElementById('result');

form.addEventListener('submit', function(e) {
  e.preventDefault();
  const formData = new FormData(form);
  const object = Object.fromEntries(formData);
  const json = JSON.stringify(object);
  result.innerHTML = "Please wait..."

    fetch('SERVICE/contact', {
            method: 'POST',
            headers: {
                'Content-Type': 'application/json',
                'Accept': 'application/json'
            },
            body: json
        })
        .then(async (response) => {
            let json = await response.json();
            if (response.status == 200) {
                result.innerHTML = json.message;
            } else {
                console.log(response);
                result.innerHTML = json.message;
            }
        })
        .catch(error => {
            console.log(error);
            result.innerHTML = "Something went wrong!";
        });
});
</script>
"""
FORMSUBMIT_AJAX = """
<form id="form">
  <label>Email <input type="email" name="email"></label>
  <label>Message <textarea name="message"></textarea></label>
  <button>Send</button>
</form>
<p id="result"></p>
<script>
document.getElementById("form").addEventListener("submit", event => {
  event.preventDefault();
  fetch("SERVICE/contact", {
    method: "POST",
    headers: {
      'Content-Type': 'application/json',
      'Accept': 'application/json'
    },
    body: JSON.stringify(Object.fromEntries(new FormData(event.target)))
  })
    .then(response => response.json())
    .then(data => document.getElementById("result").textContent = data.message)
    .catch(error => console.log(error));
});
</script>
"""
NETLIFY_FETCH = """
<form name="contact" method="POST" data-netlify="true" netlify-honeypot="bot-field">
  <input type="hidden" name="form-name" value="contact">
  <p hidden><label>Don't fill this out: <input name="bot-field"></label></p>
  <label>Email <input type="email" name="email"></label>
  <label>Message <textarea name="message"></textarea></label>
  <button>Send</button>
</form>
<p id="result"></p>
<script>
const handleSubmit = event => {
  event.preventDefault();
  const myForm = event.target;
  const formData = new FormData(myForm);
  fetch("SERVICE/contact", {
    method: "POST",
    headers: { "Content-Type": "application/x-www-form-urlencoded" },
    body: new URLSearchParams(formData).toString()
  })
    .then(response => response.json())
    .then(data => document.getElementById("result").textContent = data.message)
    .catch(error => alert(error));
};
document.querySelector("form").addEventListener("submit", handleSubmit);
</script>
"""


@pytest.mark.parametrize(
    ("snippet", "thanks"),
    [
        pytest.param(FORMSPREE_FETCH, "Thanks for your submission!", id="formspree"),
        pytest.param(WEB3FORMS, ON_ITS_WAY, id="web3forms"),
        pytest.param(FORMSUBMIT_AJAX, ON_ITS_WAY, id="formsubmit"),
        pytest.param(NETLIFY_FETCH, ON_ITS_WAY, id="netlify"),
    ],
)
def test_documented_snippets_need_another_address_only(
    snippet: str, thanks: str, site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab()
    site.files["/form.html"] = snippet.replace("SERVICE", desk.url)
    tab.page.goto(f"{site.url}/form.html")
    result = tab.page.locator("#result")
    tab.page.locator("[name=email]").fill("ada@example")
    tab.page.locator("[name=message]").fill("Hello from a snippet")
    tab.page.get_by_role("button").click()
    expect(result).to_have_text("This is not a valid email address.")
    tab.page.locator("[name=email]").fill("ada@example.com")
    tab.page.get_by_role("button").click()
    expect(result).to_have_text(thanks)
    assert tab.complaints == []
    (mail,) = [request.message for request in desk.mailjet.wait(1)]
    assert mail["ReplyTo"]["Email"] == "ada@example.com"
    assert "Hello from a snippet" in mail["TextPart"]
    for leftover in ("access_key", "YOUR_ACCESS_KEY", "form-name", "bot"):
        assert leftover not in mail["TextPart"]


FORMSUBMIT = """
<form action="SERVICE/contact" method="POST">
  <input type="text" name="name" required>
  <input type="email" name="email" required>
  <input type="text" name="message" required>
  <input type="hidden" name="_next" value="SITE/thanks.html">
  <input type="hidden" name="_subject" value="New submission!">
  <input type="text" name="_honey" style="display:none">
  <input type="hidden" name="_captcha" value="false">
  <input type="hidden" name="_template" value="table">
  <button type="submit">Send</button>
</form>
"""
WEB3FORMS_PLAIN = """
<form action="SERVICE/contact" method="POST">
  <input type="hidden" name="access_key" value="YOUR_ACCESS_KEY_HERE">
  <input type="text" name="name" required>
  <input type="email" name="email" required>
  <textarea name="message" required></textarea>
  <input type="hidden" name="redirect" value="SITE/thanks.html">
  <input type="hidden" name="subject" value="New submission!">
  <button type="submit">Submit Form</button>
</form>
"""


@pytest.mark.parametrize(
    "snippet", [FORMSUBMIT, WEB3FORMS_PLAIN], ids=["formsubmit", "web3forms"]
)
def test_documented_plain_forms_land_on_the_page_they_name(
    snippet: str, site: Site, open_desk: OpenDesk, open_tab: OpenTab
) -> None:
    desk, tab = open_desk(), open_tab(java_script_enabled=False)
    form = snippet.replace("SERVICE", desk.url).replace("SITE", site.url)
    site.files["/form.html"] = form
    tab.page.goto(f"{site.url}/form.html")
    tab.page.locator("[name=name]").fill("Ada")
    tab.page.locator("[name=email]").fill("ada@example.com")
    tab.page.locator("[name=message]").fill("Hello from a form")
    tab.page.get_by_role("button").click()
    expect(tab.page).to_have_url(f"{site.url}/thanks.html")
    mail = desk.mailjet.wait(1)[0].message
    assert mail["Subject"] == "[Mara Lind] New submission!"
    for leftover in ("_next", "redirect", "_captcha", "_template", "access_key"):
        assert leftover not in mail["TextPart"]
