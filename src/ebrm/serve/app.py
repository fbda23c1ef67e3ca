"""The server as an ASGI application: `create_app(model, config)`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from torch import Tensor

from ebrm._version import __version__
from ebrm.model import EnergyRewardModel
from ebrm.serve.bodies import BodyRoute
from ebrm.serve.compat_routes import add_compat_routes
from ebrm.serve.config import ServeConfig
from ebrm.serve.middleware import RequestLimits
from ebrm.serve.pages import inspector_page, routes_page
from ebrm.serve.requests import (
    ERRORS,
    Density,
    RankAnswer,
    RankRequest,
    RankResult,
    Refused,
    ScoreAnswer,
    ScoreRequest,
    ScoreResult,
    handle_errors,
    prompt_of,
    response_of,
    split_conversation,
    without_folders,
)
from ebrm.serve.scoring import Scored, ScoreItem, Scoring

_DESCRIPTION = """Refined rewards of a frozen reward model, each with its uncertainty.

Every status but 200 has the body `{"error": {"kind", "message", "row"}}`; 503 has the header Retry-After."""


def create_app(
    model: EnergyRewardModel,
    config: ServeConfig | None = None,
    name: str = "ebrm",
    backbone: Mapping[str, Any] | None = None,
) -> FastAPI:
    """The server of a model.

    The reward model is loaded when the application starts, or, where nothing starts it (tests), with the first text.

    Args:
        model: the model that scores.
        config: limits and token; host and port are for :func:`ebrm.serve.serve`.
        name: the model's name in answers.
        backbone: fields of :class:`BackboneConfig` by which the reward model is loaded; others as saved.
    """
    config = config or ServeConfig()
    scoring = Scoring(model, config, backbone)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = scoring.loading
        yield
        loading.cancel()
        scoring.close()

    # FastAPI's own pages load scripts from elsewhere: /docs is ours.
    app = FastAPI(
        title="ebrm", version=__version__, description=_DESCRIPTION, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    name = without_folders(name)
    app.state.scoring, app.state.name = scoring, name
    app.router.route_class = BodyRoute
    handle_errors(app)
    _own_routes(app, scoring, name)
    add_compat_routes(app, scoring, name)
    _state_routes(app, scoring, name)
    app.add_middleware(RequestLimits, scoring=scoring)
    return app


def _own_routes(app: FastAPI, scoring: Scoring, name: str) -> None:
    async def density(scored: Sequence[Scored], nodes: int | None) -> Density | None:
        if nodes is None:
            return None
        rewards, p = await scoring.on_model(lambda: scoring.model.density(*scoring.features(scored), nodes))
        return Density(rewards=rewards.tolist(), p=p.tolist())

    @app.post("/v1/score", response_model=ScoreAnswer, responses=ERRORS)
    async def score(request: Request, body: ScoreRequest) -> Any:
        """Refined reward, base reward, standard deviation and interval of each response."""
        pairs = zip(body.responses or [], body.prompts or [], strict=True)
        texts = [ScoreItem(text) for text in body.rendered or []]
        texts += [ScoreItem(response, prompt) for prompt, response in map(split_conversation, body.messages or [])]
        texts += [ScoreItem(response_of(response), prompt_of(prompt)) for response, prompt in pairs]

        async def work() -> ScoreAnswer:
            scored = await scoring.score(texts)
            results = [ScoreResult(**one.values) for one in scored]
            return ScoreAnswer(model=name, results=results, density=await density(scored, body.density))

        return _written(await scoring.answer(request, work))

    @app.post("/v1/rank", response_model=RankAnswer, responses=ERRORS)
    async def rank(request: Request, body: RankRequest) -> Any:
        """The responses to one prompt, best first, each with the probability that it is the best."""
        prompt = prompt_of(body.prompt)

        async def work() -> RankAnswer:
            scored = await scoring.score([ScoreItem(response_of(response), prompt) for response in body.responses])
            order = sorted(range(len(scored)), key=lambda i: -scored[i].values["reward"])
            features = scoring.features(scored)
            best, sure = await scoring.on_model(lambda: _probabilities(scoring.model, *features, order))
            ranks = enumerate(order, 1)
            results = [RankResult(index=i, rank=rank, p_best=best[i], **scored[i].values) for rank, i in ranks]
            curves = await density(scored, body.density)
            return RankAnswer(model=name, results=results, density=curves, confidence=sure)

        return _written(await scoring.answer(request, work))


def _written(answer: ScoreAnswer) -> Response:
    # By pydantic: earlier versions of FastAPI take seconds for the half a million numbers of many curves.
    return Response(answer.model_dump_json(), media_type="application/json")


def _probabilities(
    model: EnergyRewardModel, embedding: Tensor, reward: Tensor, order: Sequence[int]
) -> tuple[list[float], float | None]:
    """P(best) of each response, and the confidence of the first of `order` against the second."""
    best = model.p_best(embedding, reward).tolist() if order else []
    if len(order) < 2:
        return best, None
    a, b = order[:1], order[1:2]
    p = float(model.prefer_rows((embedding[a], embedding[b]), (reward[a], reward[b])))
    return best, max(p, 1 - p)


def _state_routes(app: FastAPI, scoring: Scoring, name: str) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """200 while the process lives; no token needed."""
        return {"status": "alive"}

    @app.get("/ready", responses={code: ERRORS[code] for code in (401, 503)})
    async def ready() -> dict[str, str]:
        """200 when it scores; 503 while the reward model loads and while the server ends."""
        if scoring.ready:
            return {"status": "ready"}
        if scoring.draining:
            raise Refused(503, "draining", "The server is ending.", close=True)
        loading = scoring.loading
        if loading.done() and not loading.cancelled() and loading.exception() is not None:
            raise Refused(503, "loading", f"The reward model cannot be loaded: {loading.exception()}")
        raise Refused(503, "loading", "The reward model is being loaded.")

    @app.get("/info", responses={401: ERRORS[401]})
    async def info() -> dict[str, Any]:
        """Model, reward model, text rule, units, inference config, limits."""
        return without_folders(_about(scoring, name))

    @app.get("/metrics", responses={401: ERRORS[401]}, response_class=Response)
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(scoring.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def inspector() -> HTMLResponse:
        return inspector_page()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(routes_page(app.openapi()))


def _about(scoring: Scoring, name: str) -> dict[str, Any]:
    record, head = scoring.model.record, scoring.model.head
    rule = {key: value for key, value in scoring.text_rule().items() if key not in ("template", "template_kwargs")}
    low, high = (float(r) for r in head.standardizer.to_base(head.support.double()))
    return {
        "ebrm_version": __version__,
        "model": name,
        "fingerprint": scoring.fingerprint(),
        "reward_model": record.backbone,
        "text_rule": rule,
        "template_sha256": rule.get("template_sha256"),
        "dtype": record.backbone.get("dtype"),
        "units": {
            "of": "the base reward model",
            "mean": float(head.standardizer.reward_mean),
            "std": float(head.standardizer.reward_std),
            "range": [low, high],
        },
        "inference": record.head.to_dict()["inference"],
        "calibration": None if record.calibration is None else record.calibration.to_dict(),
        "abstention": [rule.to_dict() for rule in record.abstention],
        "limits": scoring.limits(),
    }
