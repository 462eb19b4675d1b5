"""What is served is replaced whole, and models live as long as a call needs them."""

import asyncio
from typing import Any

import pytest

from service.catalog import Catalog, CatalogView


class Named:
    """Stands for a model; compared by identity, as models are."""

    def __init__(self, name: str) -> None:
        self.name = name


def view(*models: Any) -> CatalogView:
    return CatalogView(models=models, translator=None, info=None)  # type: ignore[arg-type]


def catalog(*models: Any) -> Catalog:
    made = Catalog()
    made.replace(view(*models))
    return made


def test_before_the_first_view_nothing_is_served() -> None:
    made = Catalog()
    assert made.models == made.in_use == ()
    with pytest.raises(LookupError), made.lease():
        pass


def test_a_new_view_names_who_is_out() -> None:
    old, stays, new = Named("m"), Named("n"), Named("m")
    made = catalog(old, stays)
    assert made.replace(view(stays, new)) == (old,)
    assert made.models == made.in_use == (stays, new)


def test_a_lease_goes_on_with_the_view_it_began_with() -> None:
    old, new = Named("m"), Named("m")
    made = catalog(old)
    with made.lease() as lease:
        made.replace(view(new))
        assert lease.view.models == lease.models == (old,)
        assert made.models == (new,)
        assert made.in_use == (new, old)
        with made.lease() as later:
            assert later.models == (new,)
    assert made.in_use == (new,)


async def test_a_model_that_is_out_is_told_when_its_last_lease_is_back() -> None:
    old, new = Named("m"), Named("m")
    made = catalog(old)
    with made.lease():
        with made.lease():
            made.replace(view(new))
            unused = asyncio.create_task(made.wait_unused(old))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not unused.done()
    await unused
    await made.wait_unused(old)  # at once: nobody has it


async def test_a_lease_gives_back_what_it_does_not_keep() -> None:
    mine, other = Named("m"), Named("n")
    made = catalog(mine, other)
    with made.lease() as lease:
        made.replace(view(Named("x")))
        made.keep(lease, mine)
        await made.wait_unused(other)
        assert lease.models == (mine,)
        assert mine in made.in_use
        with pytest.raises(ValueError, match="keeps a model that it holds"):
            made.keep(lease, other)
    await made.wait_unused(mine)


async def test_a_lease_comes_back_whatever_ends_its_call() -> None:
    old = Named("m")
    made = catalog(old)

    async def call() -> None:
        with made.lease() as lease:
            made.keep(lease, old)
            await asyncio.Event().wait()

    calls = [asyncio.create_task(call()) for _ in range(3)]
    await asyncio.sleep(0)
    made.replace(view(Named("m")))
    for task in calls:
        assert old in made.in_use
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await made.wait_unused(old)


async def test_who_is_served_is_not_waited_for() -> None:
    served = Named("m")
    with pytest.raises(ValueError, match="must be out of service"):
        await catalog(served).wait_unused(served)
