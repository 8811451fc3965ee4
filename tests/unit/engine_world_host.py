# SPDX-License-Identifier: Apache-2.0
"""More of the simulated host: pools of huge pages, free blocks, a cgroup with a cpuset, pressure, page cache."""

from __future__ import annotations

from collections.abc import Callable

from numaplacement.engine.listformat import format_list, parse_list
from tests.unit.engine_world import PID, World
from tests.unit.engine_world_region import HUGE, PAGE

NODE = "sys/devices/system/node"
POOL = "hugepages/hugepages-2048kB"
CGROUP = "sys/fs/cgroup/pod"


def with_blocks(world: World, *, fragmented: bool = False) -> None:
    """Have all that is free lie in blocks of 4 MiB, where it is `fragmented` once the NUMA nodes are compacted."""
    whole = [not fragmented]

    def buddyinfo() -> str:
        blocks = {node: safe >> 22 if whole[0] else 0 for node, safe in world.safe.items()}
        return "".join(f"Node {node}, zone   Normal {'0 ' * 10}{count}\n" for node, count in blocks.items())

    def compact(_: str) -> None:
        whole[0] = True

    world.texts["proc/buddyinfo"] = buddyinfo
    for numa_node in world.safe:
        world.writes[f"{NODE}/node{numa_node}/compact"] = compact


def with_pools(world: World, **pages: tuple[int, int]) -> None:
    """Have pools of 2 MiB pages: node0=(total, free) and so on."""
    with_blocks(world)
    for node, sizes in pages.items():
        numa_node, path = int(node[len("node") :]), f"{NODE}/{node}/{POOL}"
        pool = world.pools[numa_node] = list(sizes)
        world.texts |= {
            f"{path}/nr_hugepages": _number(pool, 0),
            f"{path}/free_hugepages": _number(pool, 1),
            f"{path}/surplus_hugepages": lambda: "0\n",
        }
        world.writes[f"{path}/nr_hugepages"] = _resize(world, numa_node)
    world.texts[f"sys/kernel/mm/{POOL}/resv_hugepages"] = lambda: "0\n"


def _number(pool: list[int], index: int) -> Callable[[], str]:
    return lambda: f"{pool[index]}\n"


def _resize(world: World, numa_node: int) -> Callable[[str], None]:
    def resize(text: str) -> None:
        pool = world.pools[numa_node]
        change = max(-pool[1], min(int(text) - pool[0], world.safe[numa_node] // HUGE))
        pool[0] += change
        pool[1] += change
        world.safe[numa_node] -= change * HUGE

    return resize


def with_cgroup(world: World, *, mems: str) -> None:
    """Have a cgroup with a cpuset; to write cpuset.mems moves what is on NUMA nodes that it takes away."""
    world.mems = mems

    def write(text: str) -> None:
        old, new = parse_list(world.mems), parse_list(text or "0-3")
        world.mems = format_list(new)
        for region in world.regions:
            for index, node in enumerate(region.nodes):
                if node in old - new and index not in region.refused:
                    world.take(region, index, min(new))

    world.texts |= {
        f"{CGROUP}/cgroup.type": lambda: "domain\n",
        f"{CGROUP}/cgroup.procs": lambda: f"{PID}\n",
        f"{CGROUP}/cgroup.threads": lambda: "".join(f"{thread}\n" for thread in world.affinity),
        f"{CGROUP}/cpuset.mems": lambda: f"{world.mems}\n",
        f"{CGROUP}/cpuset.mems.effective": lambda: f"{world.mems}\n",
        "sys/fs/cgroup/cpuset.mems.effective": lambda: "0-3\n",
        f"{CGROUP}/memory.numa_stat": lambda: "pagetables N0=0 N1=2097152\n",
        f"{CGROUP}/memory.pressure": lambda: "some avg10=0.00 total=0\nfull avg10=0.00 total=0\n",
    }
    world.writes[f"{CGROUP}/cpuset.mems"] = write


def with_page_cache(world: World, numa_node: int, size: int) -> None:
    """Have page cache on a NUMA node that it gives back when it is asked to."""
    cache = [size]
    path = f"{NODE}/node{numa_node}"

    def meminfo() -> str:
        values = {"MemTotal": 4 << 30, "MemFree": world.safe[numa_node] + 3000 * PAGE, "Inactive(file)": cache[0]}
        return "".join(f"Node {numa_node} {name}: {count >> 10} kB\n" for name, count in values.items())

    def reclaim(text: str) -> None:
        count = min(int(text.split(maxsplit=1)[0]), cache[0])
        cache[0] -= count
        world.safe[numa_node] += count

    world.texts |= {f"{path}/meminfo": meminfo, f"{path}/reclaim": str, "proc/sys/vm/min_unmapped_ratio": lambda: "0\n"}
    world.writes[f"{path}/reclaim"] = reclaim


def with_more_evidence(world: World) -> None:
    """Have the rest of what is looked at: waits of vCPUs, counters of pins, AutoNUMA."""
    counters = "nr_foll_pin_acquired 0\nnr_foll_pin_released 0\n"
    world.texts |= {f"{NODE}/node{numa_node}/vmstat": lambda: counters for numa_node in world.safe}
    world.texts |= {
        "sys/devices/system/cpu/isolated": lambda: "\n",
        "sys/kernel/mm/transparent_hugepage/hpage_pmd_size": lambda: f"{HUGE}\n",
        "proc/vmstat": lambda: "numa_hint_faults 0\n",
    }
    for thread in range(len(world.thread_names)):
        world.texts[f"proc/{PID}/task/{PID + thread}/schedstat"] = lambda: "1000 1000 1\n"
    world.writes["proc/sys/vm/stat_refresh"] = lambda _: None


__all__ = ["HUGE", "PAGE", "with_blocks", "with_cgroup", "with_more_evidence", "with_page_cache", "with_pools"]
