"""A service that learns from what its users say of its drafts: edits, comments, thumbs, stars, choices.

pip install fastapi '.[serve]'
export OPENAI_API_KEY=... PERSONA_STORE=personas.db
uvicorn --app-dir examples fastapi_feedback:app --workers 2

With MLFLOW_TRACKING_URI set, each draft is a trace there and what its user says of it an assessment on that trace.
"""

import os
from contextlib import ExitStack, asynccontextmanager
from typing import Literal

import dspy
from dspy.utils.exceptions import DSPyError
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from persona_dspy import PersonaAgent, PersonaAlignment, Personas
from persona_dspy.errors import InputError
from persona_dspy.lm import resolve_lm
from persona_dspy.service import ServiceOptions
from persona_dspy.store import Store
from persona_dspy.tracking import MlflowTracker


class Draft(dspy.Signature):
    """Draft a reply to a customer's message, in the words this support agent would use."""

    message: str = dspy.InputField()
    reply: str = dspy.OutputField()


class Message(BaseModel):
    message: str = Field(min_length=1, max_length=20_000)


class Remark(BaseModel):
    """What a user may say of a draft; any of it, at any time, any number of times."""

    edited: str | None = Field(None, min_length=1, max_length=20_000)
    comment: str = Field("", max_length=2_000)
    thumbs: Literal["up", "down"] | None = None
    rating: int | None = Field(None, ge=1, le=5)
    preferred: str | None = Field(None, min_length=1, max_length=20_000)


@asynccontextmanager
async def lifespan(app: FastAPI):
    """Everything is made here, in the worker: connections and threads do not survive a fork."""
    lm = resolve_lm(os.environ.get("PERSONA_MODEL", "openai/gpt-4o-mini"), cache=False)  # DSPy's cache forgets nobody
    dspy.configure(lm=lm)
    where, tracking = os.environ.get("PERSONA_STORE", "personas.db"), os.environ.get("MLFLOW_TRACKING_URI")
    with Store.open(where) as store, ExitStack() as closing:
        traces = closing.enter_context(MlflowTracker(tracking).tracing()) if tracking else None
        options = ServiceOptions(queue=os.environ.get("PERSONA_QUEUE", "personas-queue"), traces=traces)
        app.state.personas = Personas(store, PersonaAgent(Draft), PersonaAlignment(), every=3, options=options)
        app.state.personas.start()  # users who are due since the last run wait for no request
        yield
        await app.state.personas.aclose(timeout=30)


app = FastAPI(lifespan=lifespan)


@app.exception_handler(DSPyError)
async def model_failed(request: Request, failure: DSPyError):
    """The model is down, or its answer cannot be read. Its words may be a user's: only the kind of failure is told."""
    return JSONResponse({"detail": f"no answer of the model: {type(failure).__name__}"}, status_code=502)


def signed_in(x_user: str = Header(max_length=200)) -> str:
    """Who asks. Take this from your own session or token: never from what a client may choose freely."""
    if not x_user.strip():
        raise HTTPException(401, "no user")
    return x_user


@app.post("/drafts")
async def draft(asked: Message, user: str = Depends(signed_in)):
    program = await app.state.personas.afor_user(user)
    prediction = await program.acall(message=asked.message)
    return {"id": prediction.trace.id, "reply": prediction.reply, "persona_version": prediction.trace.persona_version}


@app.post("/drafts/{draft_id}/feedback", status_code=202)
async def feedback(draft_id: str, said: Remark, user: str = Depends(signed_in)):
    """From whichever worker, minutes or days after the draft."""
    try:
        kept = await app.state.personas.afeedback(user, draft_id, **said.model_dump())
    except InputError as refused:
        raise HTTPException(422, str(refused)) from None
    return {"id": kept.id, "learned": "answer" if kept.answered else "signal"}


@app.get("/persona")
async def persona(user: str = Depends(signed_in)):
    program = await app.state.personas.afor_user(user)
    return {"version": program.persona.value.version, "persona": program.persona.value.render()}


@app.delete("/me")
async def forget(user: str = Depends(signed_in)):
    return [erasure.to_dict() for erasure in await app.state.personas.aforget(user)]


@app.get("/health")
async def health():
    return app.state.personas.status()
