"""No password and no key in what is said or written."""

import pytest

from persona_dspy.core.secrets import remember_secret, scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "postgresql+psycopg://ana:hunter2-secret@db/x",
        "store 'postgresql://ana:hunter2-secret@db' refused; retry http://bob:hunter2-secret@proxy:80/v1.",
        "https://mlflow.example.com/?token=hunter2-secret&x=1",
        "401: Authorization: Bearer hunter2-secret",
        "Incorrect API key provided: sk-proj-hunter2-secret12",
        "env hunter2-secret-of-env and given hunter2-secret-of-code",
    ],
)
def test_secrets_are_scrubbed_and_the_rest_is_not(text, monkeypatch):
    monkeypatch.setenv("EXAMPLE_API_KEY", "hunter2-secret-of-env")
    remember_secret("hunter2-secret-of-code")
    clean = scrubbed(text)
    assert "hunter2" not in clean and "***" in clean
    assert scrubbed(clean) == clean


def test_ordinary_text_stays():
    text = "see https://example.com/a?b=c, mail ana@example.com; a sketch of the risk-free key: 12"
    assert scrubbed(text) == text
