"""``nuanced cache``: list, verify or prune the cache of rendered clips."""

from typing import Annotated

import typer

__all__ = ["cache"]


def cache(
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every entry again and remove the damaged ones.")
    ] = False,
    prune: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Keep this much (10GB, 500MB, 0) of what was used last."),
    ] = None,
) -> None:
    """List, verify or prune the cache of rendered clips.

    Examples:
      nuanced cache
      nuanced cache --verify --prune 10GB
    """
    from nuanced_core.data.cache import KINDS, Cache, cache_limit, format_size, parse_size
    from nuanced_core.weights.store import cache_dir

    limit = cache_limit()
    target = None if prune is None else parse_size(prune, "--prune")
    kept = Cache(cache_dir())
    if verify:
        print(f"verified: {len(kept.verify())} damaged entries removed")
    if target is not None:
        print(f"pruned: {len(kept.prune(target))} entries removed")
    entries = kept.entries()
    for kind in KINDS:
        sizes = [entry.bytes for entry in entries if entry.kind == kind]
        print(f"{kind:10} {len(sizes):8} {format_size(sum(sizes)):>10}")
    print(f"{'total':10} {len(entries):8} {format_size(sum(entry.bytes for entry in entries)):>10}  {kept.folder}")
    if limit is not None:
        print(f"limit      {format_size(limit):>19}  NUANCED_CACHE_LIMIT")
