"""Names in a recipe that become folders or modules: what cannot be one is refused in one line."""

import pytest

from tsd.errors import RecipeError
from tsd.recipe import load


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "../a", "''"])
@pytest.mark.parametrize("place", ["name={}", "teachers={{{}: {{kind: rules}}}}"])
def test_a_name_that_is_no_folder_in_out_is_refused(place: str, name: str) -> None:
    with pytest.raises(RecipeError, match="not begin with a point: it names a folder") as caught:
        load("laptop", [place.format(name)])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["laptop", "a.b", "7", "-x", "_"])
def test_other_names_are_kept(name: str) -> None:
    assert load("laptop", [f"name='{name}'"]).name == name


@pytest.mark.parametrize(
    "override",
    ["plugins=['.']", "plugins=['..']", "plugins=['.x']", "plugins=['a..b']", "task=':T'", "task='.:T'"],
)
def test_what_is_no_name_of_a_module_is_refused(override: str) -> None:
    with pytest.raises(RecipeError, match="is no module: name one such as") as caught:
        load("laptop", [override])
    assert len(str(caught.value).splitlines()) == 1
    assert "importlib" not in str(caught.value)
