from tests.conftest import Desk


def test_a_message_is_stored_and_mailed_once(desk: Desk) -> None:
    form = {"email": "ada@example.com", "message": "Hello"}
    first = desk.post("/contact", form)
    again = desk.post("/contact", form)
    assert first.status_code == again.status_code == 200
    assert first.json["id"] == again.json["id"]
    assert [m["id"] for m in desk.messages()] == [first.json["id"]]
    assert len(desk.drain()) == 1
