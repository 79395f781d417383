"""From ProxylessNAS to a front: one network for each target latency, all from one warm-up, as trials."""

from __future__ import annotations

import logging

from hwnas.errors import RecipeError
from hwnas.run import Run
from hwnas.subnets import known_subnets, record_subnet, require_one
from hwnas.supernet.derive import LEAST_SHARE
from hwnas.supernet.proxyless import ProxylessConfig, search
from hwnas.supernet.relaxations import relax
from hwnas.train.device import training_device
from hwnas.train.loop import evaluate

_log = logging.getLogger(__name__)


def search_proxyless(run: Run) -> None:
    """Search a network for every target of the recipe, and record them as trials.

    Targets hold for what the recipe's latency limit does: the predicted latency, or its upper bound. Raises RecipeError
    without a target, and for limits that are not kept by keeping them; SpaceError for a space without a relaxation,
    InfeasibleError if nothing keeps a target, RunError if every network failed that was trained on.
    """
    section = run.recipe.supernet
    targets = section.targets or ([] if run.recipe.search.latency is None else [run.recipe.search.latency])
    if not targets:
        raise RecipeError(
            'ProxylessNAS needs a latency to end at: supernet.targets = ["1 ms", "2 ms"], or search.latency'
        )
    limits = run.recipe.search
    for name in ("macs", "params", "size"):
        if (limit := getattr(limits, name)) is not None:
            raise RecipeError(
                f"ProxylessNAS searches for latencies, and would not keep search.{name} = {limit:g}; leave that out, "
                "or search by another method"
            )
    if limits.latency is not None and max(targets) > limits.latency:
        raise RecipeError(
            f"supernet.targets has {max(targets):g} ms, above the limit search.latency of {limits.latency:g} ms"
        )
    rate = {} if section.learning_rate is None else {"learning_rate": section.learning_rate}
    config = ProxylessConfig(
        warmup_epochs=section.warmup_epochs,
        epochs=max(1, round(section.epochs or 0)),
        batch_size=run.recipe.train.batch_size,
        augment=run.recipe.train.augment,
        mix=run.recipe.train.mix,
        ema=run.recipe.train.ema,
        loss=section.loss,
        seed=run.recipe.seed,
        **rate,  # type: ignore[arg-type]
    )
    networks = search(
        relax(run.space, section.fixed),
        run.data,
        run.searched_ms,
        targets,
        config,
        folder=run.folder / "supernet",
        device=training_device(run.recipe.train.device),
        max_threads=run.recipe.train.threads,
        progress=run.progress,
        log_dir=run.folder / "logs" / "supernet" if run.recipe.train.log else None,
    )
    data = run.data
    for found in networks:
        if found.ms < LEAST_SHARE * found.target_ms:
            _log.warning(
                "target %g ms: no network of at least %.4g ms was found below it; %s takes %.4g ms",
                found.target_ms,
                LEAST_SHARE * found.target_ms,
                run.network_name(found.arch),
                found.ms,
            )
        if found.arch not in known_subnets(run):
            size = run.space.input_shape(found.arch)[1]
            shared = evaluate(found.network, data.x_valid, data.y_valid, data.mean, data.std, size)
            record_subnet(run, found.arch, found.network, shared, target_ms=found.target_ms)
    require_one(run)
