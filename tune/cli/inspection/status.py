"""``nuanced status``: the state of a sweep and of its trials."""

import json

from tune.cli.common.options import Json, SweepFolder

__all__ = ["status"]


def status(folder: SweepFolder, as_json: Json = False) -> None:
    """Show the state of a sweep and its trials, also while it runs.

    Examples:
      nuanced status outputs/quickstart
      nuanced status outputs/quickstart --json | jq .best
    """
    from tune.show import report
    from tune.show import status as sweep_status

    if as_json:
        print(json.dumps(sweep_status.status(folder), indent=2))
    else:
        print("\n".join(report.status_lines(folder)))
