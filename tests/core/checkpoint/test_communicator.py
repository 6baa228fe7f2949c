"""Ranks agree over a key-value store: order, large values, and peers that never come."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore, TCPStore
from torch.distributed import DistNetworkError

from scaling.core.checkpoint.communicator import CHUNK_BYTES, Alone, Communicator, StoreCommunicator
from scaling.core.errors import ScalingError
from tests.core.checkpoint.virtual import on_ranks


def test_rank_0_gathers_in_rank_order_and_everyone_hears_it() -> None:
    def rank(ranks: Communicator) -> tuple[Any, Any]:
        gathered = [ranks.gather({"rank": ranks.rank, "round": round_}) for round_ in range(3)]
        return gathered, ranks.broadcast(f"from {ranks.rank}")

    results = on_ranks(4, rank)
    assert results[0][0] == [[{"rank": rank, "round": round_} for rank in range(4)] for round_ in range(3)]
    assert all(gathered == [None] * 3 for gathered, _ in results[1:])
    assert {heard for _, heard in results} == {"from 0"}


def test_a_single_process_needs_no_store() -> None:
    assert Alone().gather(1) == [1]
    assert Alone().broadcast(2) == 2


def test_values_larger_than_a_store_takes_at_once_arrive_whole() -> None:
    server = TCPStore("127.0.0.1", 0, None, True)
    client = TCPStore("127.0.0.1", server.port, None, False)
    value = "é" * (9 * CHUNK_BYTES // 6)
    answers: list[Any] = []
    other = threading.Thread(target=lambda: answers.append(StoreCommunicator(client, 1, 2).gather(value)))
    other.start()
    assert StoreCommunicator(server, 0, 2).gather("mine") == ["mine", value]
    other.join()
    assert answers == [None]


def test_nothing_piles_up_in_the_store() -> None:
    store = HashStore()

    def rank(number: int) -> None:
        ranks = StoreCommunicator(store, number, 2)
        for round_ in range(20):
            ranks.gather(round_)
            ranks.broadcast(round_)
        ranks.gather(None)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.num_keys() == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_peer_that_never_comes_is_an_error_that_names_it(rank: int, tmp_path: Path) -> None:
    ranks = StoreCommunicator(HashStore(), rank, 2, timeout=timedelta(seconds=0.05))
    with pytest.raises(ScalingError, match=f"rank {1 - rank} did not take part"):
        ranks.gather(None) if rank == 0 else ranks.broadcast(None)


def test_a_store_that_is_gone_is_an_error_and_not_a_traceback_of_torch() -> None:
    class Gone:
        def set(self, key: str, value: str, /) -> None:
            raise DistNetworkError("Connection reset by peer")

        def get(self, key: str, /) -> bytes:
            raise DistNetworkError("Connection reset by peer")

        def check(self, keys: list[str], /) -> bool:
            raise DistNetworkError("Connection reset by peer")

        def delete_key(self, key: str, /) -> bool:
            raise DistNetworkError("Connection reset by peer")

    for rank in (0, 1):
        with pytest.raises(ScalingError, match="does not answer"):
            StoreCommunicator(Gone(), rank, 2).gather(None)


def test_two_communicators_share_a_store_under_different_prefixes() -> None:
    store = HashStore()
    first, second = (StoreCommunicator(store, 0, 2, prefix=name) for name in ("a", "b"))
    first.broadcast("from a")
    second.broadcast("from b")
    assert StoreCommunicator(store, 1, 2, prefix="b").broadcast(None) == "from b"
    assert StoreCommunicator(store, 1, 2, prefix="a").broadcast(None) == "from a"
