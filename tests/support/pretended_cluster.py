"""A Ray cluster whose nodes all are this machine, as a process: `add NAME` and `kill NAME` on standard input.

In a process of its own because Ray settles what it knows of tokens when it is first imported.
"""

import sys
from pathlib import Path

from ray.cluster_utils import Cluster


def main(folder: Path, caches: Path) -> None:
    # A head without CPUs, and nodes with one each.
    head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder / "ray")}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    print(cluster.address, flush=True)
    nodes = {}
    for line in sys.stdin:
        what, name = line.split()
        if what == "add":
            nodes[name] = cluster.add_node(num_cpus=1, env_vars={"DEPTHWISE_SEARCH_CACHE": str(caches / name)})
        else:
            # As a power cut would: nothing of it says goodbye.
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
