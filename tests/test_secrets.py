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
        "Incorrect API key provided: sk-hunter2-secret12. Upstream key gsk_hunter2secret12.",
        "postgresql://ana:p@ss/w@hunter2@db/x refused",
        "host=db user=ana password=hunter2 dbname=x",
        "https://hunter2secretofmlflow@mlflow.example/",
        "github_pat_hunter2_abcdefgh gho_hunter2secret12 ghs_hunter2secret12 xoxb-hunter2-secret",
        "nvapi-hunter2secret12 r8_hunter2secret12 eyJhunter2.eyJzdWIiOiIxMjM0In0.hunter2",
        "Authorization: Basic hunter2YW5h",
        "{'api-key': 'hunter2', \"password\":\"hunter2\"} x-api-key: hunter2",
        "aws_secret_access_key=hunter2/EXAMPLE https://x/?key=hunter2",
        'as JSON: hunter2 \\"quoted\\" secret',
    ],
)
def test_secrets_are_scrubbed_and_the_rest_is_not(text, monkeypatch):
    monkeypatch.setenv("EXAMPLE_API_KEY", "hunter2-secret-of-env")
    monkeypatch.setenv("EXAMPLE_TOKEN", 'hunter2 "quoted" secret')
    remember_secret("hunter2-secret-of-code")
    clean = scrubbed(text)
    assert "hunter2" not in clean and "***" in clean
    assert scrubbed(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "see https://example.com/a?b=c, mail ana@example.com; a sketch of the risk-free key: 12",
        "Likes skateboarding and Basic English, with basic understanding of the token: a word; max_tokens=512",
        "http://localhost:8000/v1/x?u=a@b https://git@github.com/a postgresql://ana@db/x",
        "type: export OPENAI_API_KEY=..., or hf-internal-testing/tiny-random",
    ],
)
def test_ordinary_text_stays(text):
    assert scrubbed(text) == text
