"""LaMP's and LongLaMP's tasks as one table - labels, field names, metrics, pattern of the official input, which keys of
a profile item are the query and the response - and the task of a plain history.

LaMP: arXiv 2304.11406. Its "LaMP_2" is two tasks under one name: movie tags (2M, the newer) and news (2N, the older).
LongLaMP: arXiv 2407.11016.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from persona_dspy.core import Interaction, ResponseKind, own_labels
from persona_dspy.data import citation
from persona_dspy.data.tasks import Task
from persona_dspy.errors import InputError

__all__ = ["Task", "get_task", "infer_task", "task_names", "task_of_row"]

_REMAINS = re.compile(r"https?://\S+|www\.\S+|[^\w\s@'’]|_")
_STRETCHED = re.compile(r"(\w)\1{2,}")


def _flattened_tweet(texts: Mapping[str, str], earlier: Sequence[Interaction], user_id: str) -> tuple[str, str]:
    # LaMP-7 profiles hold the user's own tweets only. The plain tweet to paraphrase is made by code, by taking the
    # writing style out: case, punctuation, links, emoji, stretched letters. The user's own tweet is the response.
    plain = _STRETCHED.sub(r"\1", _REMAINS.sub(" ", texts["text"])).lower()
    return " ".join(plain.split()), texts["text"]


def _review(texts: Mapping[str, str], earlier: Sequence[Interaction], user_id: str) -> tuple[str, str]:
    # As the official input has it: rating, description and summary are given, the text of the review is asked for.
    told = f'with the rating "{texts["overall"]}" for a product with the description "{texts["description"]}"'
    return f'{told}; the summary of the review is "{texts["summary"]}"', texts["reviewText"]


_AVOCADO = (
    "The public files of this task hold ids in place of the mails, which are the licensed Avocado corpus (LDC2015T03): "
    "fill them in with the benchmark's own script first"
)
_TAGS = (
    "sci-fi, based on a book, comedy, action, twist ending, dystopia, dark comedy, classic, psychology, fantasy, "
    "romance, thought-provoking, social commentary, violence, true story"
)
_CATEGORIES = (
    "women, religion, politics, style & beauty, entertainment, culture & arts, sports, science & technology, travel, "
    "business, crime, education, healthy living, parents, food & drink"
)

_SHORT_TASKS = (
    Task(
        name="lamp-1",
        title="citation identification",
        query_field="papers",
        response_field="reference",
        instructions=(
            "This user is an author of papers. Say which of the two references, [1] or [2], this user cites in the "
            "paper named."
        ),
        query_means="title of the user's paper, and two titles of which the paper cites one",
        response_means="the reference cited",
        labels=("[1]", "[2]"),
        metrics=("accuracy", "macro_f1"),
        input_pattern=(  # bounded, so that no input makes it backtrack for long
            r'(?s)title\s{1,9}"(.{0,2000})"\s{0,9},\s{0,9}which reference is related\?.{0,99}?'
            r'\[1\]:\s{0,9}"(.{0,2000})"\s{0,9}\[2\]:\s{0,9}"(.{0,2000})"\s{0,9}$'
        ),
        item_query=("title",),
        item_response="",
        item_extras=("title", "abstract", "venue"),
        item_reads=("citation",),
        make_pair=citation.pair,
        make_query=citation.query,
    ),
    Task(
        name="lamp-2m",
        title="movie tagging",
        query_field="description",
        response_field="tag",
        instructions=(
            "Say which tag this user gives the film described. Several tags may be true of a film; the question is "
            "which one this user chose."
        ),
        query_means="what the film is about",
        response_means="the tag this user chose",
        labels=tuple(_TAGS.split(", ")),
        metrics=("accuracy", "macro_f1"),
        input_pattern=r"(?is)\bdescription:(.*)$",
        item_query=("description",),
        item_response="tag",
        item_extras=("title",),
    ),
    Task(
        name="lamp-2n",
        title="news categorisation",
        query_field="article",
        response_field="category",
        instructions="Say which category this user, a journalist, filed the article under. Several may be true of it.",
        query_means="the article",
        response_means="the category this user chose",
        labels=tuple(_CATEGORIES.split(", ")),
        metrics=("accuracy", "macro_f1"),
        input_pattern=r"(?is)\barticle:(.*)$",
        item_query=("text", "title"),
        item_response="category",
        item_extras=("title",),
    ),
    Task(
        name="lamp-3",
        title="rating",
        query_field="text",
        response_field="score",
        instructions=(
            "Say which score this user gives the text, from 1, the lowest, to 5, the highest. What is scored, and how "
            "strictly, the user's own past scores show."
        ),
        query_means="the text that is scored",
        response_means="this user's score, a whole number from 1 to 5",
        rating=(1, 5),
        metrics=("mae", "rmse"),
        input_pattern=r"(?is)\b(?:review|comment|text):(.*)$",
        item_query=("text",),
        item_response="score",
    ),
    Task(
        name="lamp-4",
        title="news headline",
        query_field="article",
        response_field="headline",
        instructions="Write the headline that this user, a journalist, gives the article.",
        query_means="the article, or only its opening or a teaser",
        response_means="the headline in this user's manner",
        metrics=("rouge1", "rougeL"),
        input_pattern=r"(?is)\barticle:(.*)$",
        item_query=("text",),
        item_response="title",
    ),
    Task(
        name="lamp-5",
        title="paper title",
        query_field="abstract",
        response_field="title",
        instructions="Write the title that this user, a researcher, gives the paper with this abstract.",
        query_means="abstract of the paper",
        response_means="the title in this user's manner",
        metrics=("rouge1", "rougeL"),
        input_pattern=r"(?is)\bpaper:(.*)$",
        item_query=("abstract",),
        item_response="title",
    ),
    Task(
        name="lamp-6",
        title="email subject",
        query_field="email",
        response_field="subject",
        instructions="Write the subject line that this user gives the email.",
        query_means="text of the email",
        response_means="the subject line in this user's manner",
        metrics=("rouge1", "rougeL"),
        input_pattern=r"(?is)\bemail:(.*)$",
        item_query=("text",),
        item_response="title",
        licence=_AVOCADO,
    ),
    Task(
        name="lamp-7",
        title="tweet paraphrase",
        query_field="plain_text",
        response_field="tweet",
        instructions="Say the plain text as this user would write it in a tweet.",
        query_means="what the tweet says, without the user's manner",
        response_means="the tweet as this user writes it",
        metrics=("rouge1", "rougeL"),
        input_pattern=r"(?s)\btweet\b[^:]{0,99}:(.*)$",
        item_query=("text",),
        item_response="",
        make_pair=_flattened_tweet,
    ),
)
_LONG = ("rouge1", "rougeL", "meteor")
_LONG_TASKS = (
    Task(
        name="longlamp-1",
        title="email completion",
        query_field="start",
        response_field="email",
        instructions="Complete the email as this user would write it.",
        query_means="how the email begins",
        response_means="the rest of the email in this user's manner",
        metrics=_LONG,
        input_pattern=r"(?is)\bcomplete the following email\b[^:]{0,99}:(.*)$",
        item_query=("subject",),
        item_response="text",
        licence=_AVOCADO,
    ),
    Task(
        name="longlamp-2",
        title="abstract generation",
        query_field="paper",
        response_field="abstract",
        instructions="Write the abstract that this user, a researcher, gives the paper named.",
        query_means="title of the paper and, where known, points it makes",
        response_means="the abstract in this user's manner",
        metrics=_LONG,
        input_pattern=r"(?is)\bgenerate an abstract for the title\b(.*)$",
        item_query=("title",),
        item_response="abstract",
    ),
    Task(
        name="longlamp-3",
        title="product review",
        query_field="product",
        response_field="review",
        instructions="Write the review that this user gives the product described, with the rating and summary named.",
        query_means="the product's description, this user's rating from 1 to 5, and the review's summary",
        response_means="the text of the review in this user's manner",
        metrics=_LONG,
        input_pattern=r"(?is)\bgenerate the review text\b(.*)$",
        item_query=("description",),
        item_response="",
        item_reads=("overall", "summary", "reviewText"),
        make_pair=_review,
    ),
    Task(
        name="longlamp-4",
        title="topic writing",
        query_field="summary",
        response_field="post",
        instructions="Write the post that this user writes, of which the summary is given.",
        query_means="summary of the post",
        response_means="the post in this user's manner",
        metrics=_LONG,
        input_pattern=r"(?is)\bgenerate the content for a reddit post\b(.*)$",
        item_query=("summary",),
        item_response="content",
    ),
)
_TASKS = (*_SHORT_TASKS, *_LONG_TASKS)
_BY_NAME = {task.name: task for task in _TASKS}


def task_names() -> tuple[str, ...]:
    """The names ``get_task`` knows."""
    return tuple(_BY_NAME)


def get_task(name: str) -> Task:
    """A LaMP task by name; ``LaMP_1``, ``LaMP-2M``, ``lamp2m`` and the like mean the same.

    Raises:
        InputError: no such task; the message lists them.

    Example:
        >>> get_task("LaMP_2M").name
        'lamp-2m'
    """
    short = re.sub(r"[\W_]", "", name).casefold()
    if short == "lamp2":
        raise InputError(f"task {name!r}: two tasks share this name; expected 'lamp-2m' (movies) or 'lamp-2n' (news)")
    for task in _TASKS:
        if task.name.replace("-", "") == short:
            return task
    raise InputError(f"task {name!r}: expected one of {', '.join(_BY_NAME)}")


def task_of_row(row: object) -> Task | None:
    """The one task whose official form a row of a questions file has; None where none or several fit."""
    if not isinstance(row, Mapping) or not isinstance(row.get("input"), str):
        return None
    profile = row.get("profile")
    first = profile[0] if isinstance(profile, list) and profile else {}
    keys = set(first) if isinstance(first, Mapping) else set()
    fitting = [task for task in _TASKS if re.search(task.input_pattern, str(row["input"]))]
    if keys:
        needed = {task.name: {*task.item_query, task.item_response} - {""} for task in fitting}
        fitting = [task for task in fitting if needed[task.name] <= keys]
        most = max((len(needed[task.name]) for task in fitting), default=0)
        fitting = [task for task in fitting if len(needed[task.name]) == most]
    return fitting[0] if len(fitting) == 1 else None


def infer_task(
    interactions: Sequence[Interaction], signature: str | None = None, *, answers: ResponseKind | None = None
) -> Task:
    """The task of one user's plain history, from that user's own responses only.

    Numbers on a common scale (1-5, halves, 0-10, 0-100) are a rating; answers that come back are labels, and the closed
    set is this user's own; anything else is text (``ResponseKind.of_values``).

    Args:
        interactions: of one user, at least one.
        signature: names for the two fields, such as ``"description -> tag"``; default ``"query -> response"``.
        answers: what kind all users' answers are (``AnswerSurvey.kind``), where there are several; then the scale, not
            the labels, is theirs.

    Raises:
        InputError: no interactions, several users (labels of one must not reach another's prompt), a bad signature.

    Example:
        >>> past = [Interaction(user_id="u1", query=f"mail {i}", response="yes" if i % 2 else "no") for i in range(6)]
        >>> infer_task(past).labels
        ('no', 'yes')
    """
    users = {i.user_id for i in interactions}
    if len(users) != 1:
        first = sorted(users)[:3]
        raise InputError(f"interactions of {len(users)} users {first!r}: expected one user's, at least one interaction")
    query_field, response_field = _field_names(signature or "query -> response")
    responses = [i.response for i in interactions if i.answered]
    kind = (answers or ResponseKind.of_values(responses)).observing(responses)
    metrics = {"rating": ("mae", "rmse"), "label": ("accuracy", "macro_f1"), "text": ("chrf", "rouge1", "rougeL")}
    if any(i.signal is not None and i.signal.options for i in interactions):
        return Task(
            name="custom",
            title="custom",
            query_field=query_field,
            response_field=response_field,
            instructions=f"Given the {query_field}, say which of the options this user would choose.",
            per_query=True,
            metrics=("accuracy",),
        )
    return Task(
        name="custom",
        title="custom",
        query_field=query_field,
        response_field=response_field,
        instructions=f"Given the {query_field}, give the {response_field} that this user would give.",
        labels=own_labels(responses) if kind.name == "label" else None,
        rating=(kind.low, kind.high) if kind.name == "rating" else None,
        step=kind.step,
        metrics=metrics[kind.name],
    )


def _field_names(signature: str) -> tuple[str, str]:
    match = re.fullmatch(r"\s*([A-Za-z]\w*)\s*(?::\s*str\s*)?->\s*([A-Za-z]\w*)\s*(?::\s*str\s*)?", signature)
    if match is None or match[1] == match[2]:
        raise InputError(
            f"signature {signature!r}: expected one input and one output name, such as 'description -> tag'"
            " (give richer signatures to PersonaAgent in Python)"
        )
    return match[1], match[2]
