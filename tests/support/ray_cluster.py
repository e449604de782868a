"""Ray with deploy/ray_serve.py on this machine alone, which does what its standard input says, a word a line.

usage: python ray_cluster.py PORT ARGUMENTS, these as JSON; "serving" and what else is done is told on stdout
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray
from ray import serve

DEPLOY = Path(__file__).parents[2] / "deploy"


def main(port: int, arguments: dict[str, object]) -> None:
    sys.path.insert(0, str(DEPLOY))
    from ray_serve import Arguments, application

    # processors are counted by Ray, not taken
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": str(DEPLOY)}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(Arguments(**arguments)), name="llamafast")
    print("serving", flush=True)
    for line in sys.stdin:
        if line.strip() == "delete":
            serve.delete("llamafast")
            print("deleted", flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
