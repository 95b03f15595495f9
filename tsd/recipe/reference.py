"""The recipe's reference, from its models: Markdown for `docs/`, a JSON schema for editors, YAML with comments."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import yaml

from tsd.recipe.section import EVERY, Section
from tsd.recipe.series import SeriesConfig, defaults_by
from tsd.recipe.study import Recipe
from tsd.recipe.teacher_kinds import TEACHERS
from tsd.storage import folders
from tsd.tasks import TASKS

PAGE, SCHEMA = "recipe.md", "recipe.schema.json"
WIDTH = 100  # columns of a comment
ENDLESS = 10**6  # columns, so that a value is never wrapped

Schema: TypeAlias = dict[str, Any]

# Shorter forms that a recipe may use, which validators expand, by model and field.
SHORT: Mapping[tuple[str, str], Schema] = {
    ("RulesTeacher", "error_rate"): {"type": "number", "minimum": 0, "maximum": 1},
    ("CurationConfig", "against_truth"): {"enum": ["drop", "correct", "keep"]},
    ("CurationConfig", "caps"): {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    ("StudentsConfig", "seeds"): {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
}

INTRODUCTION = f"""# The recipe

Every key of a recipe, by section. This page is written by `make reference` from the models in `tsd/recipe/`; a
test compares the two.

A recipe is a YAML file. With `extends: NAME` or `extends: other.yaml` it names only what differs from another
one. `--set a.b=value` changes one key on the command line. `tsd recipes show NAME --comments` prints a whole
recipe with these descriptions as comments. A mapping by facet has the key `{EVERY}` for the facets that it does
not name.

Editors that use the YAML language server complete and check keys if the first line of a recipe is a comment that
names the schema, by a path from the recipe's folder or by a URL:

```yaml
# yaml-language-server: $schema=docs/{SCHEMA}
```

[Extending](extending.md) shows how plugins add processes, policies, metrics and teachers.
"""


def write(folder: str) -> list[str]:
    """Write both files of the reference into a folder. Returns their paths."""
    for name, text in ((PAGE, markdown()), (SCHEMA, schema_text())):
        folders.write_bytes(folder, name, text.encode())
    return [f"{folder.rstrip('/')}/{name}" for name in (PAGE, SCHEMA)]


# ---- The page


def markdown() -> str:
    """The reference as Markdown: a table for each section, in the order of a recipe."""
    root = Recipe.model_json_schema()
    parts = [INTRODUCTION, _table("Top level", "", root, root["$defs"])]
    for title, inner in _sections(root):
        parts.append(_table(title, inner.get("description", ""), inner, root["$defs"]))
    return "\n".join(parts)


def _sections(root: Schema) -> list[tuple[str, Schema]]:
    """Title and schema of each section, each of them once, before its own sections."""
    found: dict[str, tuple[str, Schema]] = {}

    def visit(schema: Schema, above: str) -> None:
        for name, field in schema.get("properties", {}).items():
            for model in _models(field):
                if model in found:
                    continue
                inner = root["$defs"][model]
                kind = inner["properties"].get("kind", {}).get("const")
                place = f"{above}{name}" + ("[]" if field.get("type") == "array" else "")
                found[model] = (f"`{place}`" + (f" of kind `{kind}`" if kind else ""), inner)
                visit(inner, f"{place}.")

    visit(root, "")
    return list(found.values())


def _models(schema: Schema) -> Iterator[str]:
    """The names of the models to which a field's schema refers."""
    if "$ref" in schema:
        yield schema["$ref"].rpartition("/")[2]
    for inner in _inner(schema):
        yield from _models(inner)


def _inner(schema: Schema) -> Iterator[Schema]:
    """The schemas of a field's alternatives, items and values."""
    for name in ("anyOf", "oneOf", "prefixItems"):
        yield from schema.get(name, ())
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield schema[name]
    yield from schema.get("patternProperties", {}).values()


def _table(title: str, about: str, schema: Schema, models: Mapping[str, Schema]) -> str:
    """The table of one section."""
    rows = [
        f"| `{name}` | {_type(field)} | {_default(name, field, schema)} | {_described(field, models)} |"
        for name, field in schema.get("properties", {}).items()
    ]
    head = ["| key | type | default | description |", "|---|---|---|---|"]
    return "\n".join([f"## {title}", "", *([_line(about), ""] if about else []), *head, *rows, ""])


def _described(field: Schema, models: Mapping[str, Schema]) -> str:
    """A field's description, or that of the only section to which it refers."""
    if "description" in field:
        return _line(field["description"])
    named = [models[name] for name in _models(field)]
    return _line(named[0].get("description", "")) if len(named) == 1 else "One of several kinds, see below."


def _default(name: str, field: Schema, schema: Schema) -> str:
    """A field's default as JSON; that of a section is in its own table."""
    default = field.get("default")
    if "const" in field:
        return ""
    if name in schema.get("required", ()):
        return "required"
    if default and next(_models(field), None):
        if isinstance(default, dict):
            return "see below"
        default = [each["name"] for each in default]  # of students
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _type(field: Schema) -> str:
    """A type in words, with its bounds."""
    if "$ref" in field:
        return "section"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if choices := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(map(_type, choices)))
    kind = field.get("type", "any")
    if kind == "array":
        return _list(field)
    if kind == "object":
        values = list(_inner(field))
        return f"mapping to {_type(values[0])}" if values else "mapping"
    if kind in ("integer", "number"):
        return f"{kind}{_bounds(field)}"
    return {"boolean": "`true` or `false`", "string": "text", "null": "`null`"}.get(str(kind), "mapping")


def _list(field: Schema) -> str:
    kinds = [_type(item) for item in field.get("prefixItems", ())]
    if kinds:
        same = len(set(kinds)) == 1
        return f"{len(kinds)} × ({kinds[0]})" if same else f"[{', '.join(kinds)}]"
    return f"list of {_type(field.get('items', {}))}"


def _bounds(field: Schema) -> str:
    """The bounds of a number in words, such as " from 0 to 1"."""
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        return f" from {low:,} to {high:,}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = [f"{sign} {field[name]:,}" for name, sign in signs.items() if name in field]
    return f" {' and '.join(said)}" if said else ""


def _line(text: str) -> str:
    """A docstring as one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


# ---- The schema for editors


def schema_text() -> str:
    """The JSON schema of recipe files as text."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def schema() -> Schema:
    """The JSON schema of recipe files.

    It is wider than the models: a recipe that extends another one may leave out any key, some keys have shorter
    forms, and plugins add kinds of teachers.
    """
    root: Schema = Recipe.model_json_schema()
    for (model, field), shorter in SHORT.items():
        properties = root["$defs"][model]["properties"]
        whole = properties[field]
        kept = {name: whole.pop(name) for name in ("title", "description", "default") if name in whole}
        properties[field] = {**kept, "anyOf": [shorter, whole]}
    root["properties"]["task"]["examples"] = list(TASKS)
    _loosen(root, list(TEACHERS))
    student = root["$defs"]["Student"]
    root["$defs"]["Student"] = {"anyOf": [{"type": "string"}, {**student, "required": ["name"]}]}
    extends = {"type": "string", "description": "Name or path of a recipe, from which this one differs."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "title": "A recipe of tsd",
        "properties": {"extends": extends, **root["properties"]},
    }


def _loosen(schema: Any, kinds: Sequence[str]) -> None:
    """Make every key optional, and allow any kind of teacher beside the built-in ones, in place."""
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _loosen(inner, kinds)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("required"), list):
        del schema["required"]
    if isinstance(schema.get("oneOf"), list):  # a teacher's kinds: one without a kind fits several
        other = {
            "type": "object",
            "properties": {"kind": {"type": "string", "not": {"enum": list(kinds)}}},
            "required": ["kind"],
        }
        schema.pop("discriminator", None)
        schema["anyOf"] = [*schema.pop("oneOf"), other]


# ---- YAML with comments


def commented(recipe: Recipe) -> str:
    """The whole recipe as YAML, with the description of each key above it and its defaults marked.

    Loading it gives the same recipe. A kind of section that occurs several times is described once.
    """
    usual: dict[type[Section], Mapping[str, Any]] = {SeriesConfig: defaults_by(recipe.task, recipe.truth)}
    return "\n".join(_lines(recipe, recipe.model_dump(mode="json"), set(), usual)) + "\n"


def _lines(
    section: Section,
    values: Mapping[str, Any],
    told: set[type[Section]],
    usual: Mapping[type[Section], Mapping[str, Any]],
) -> Iterator[str]:
    """The lines of one section.

    values: as written. told: the kinds of sections that were described before. usual: defaults of kinds of
    sections that depend on other keys.
    """
    new = type(section) not in told
    defaults = usual.get(type(section), {})
    told.add(type(section))
    for name, field in type(section).model_fields.items():
        if name not in values:  # it follows from another key
            continue
        value = getattr(section, name)
        if new and (about := field.description or (type(value).__doc__ if isinstance(value, Section) else "")):
            yield from textwrap.wrap(" ".join(about.split()), WIDTH, initial_indent="# ", subsequent_indent="# ")
        inner = list(_nested(value, values[name], told, usual))
        if inner:
            yield f"{name}:"
            yield from (f"  {line}" for line in inner)
        else:
            yield f"{name}: {_flow(values[name])}" + (
                "  # default" if value == defaults.get(name, field.default) else ""
            )


def _nested(
    value: Any, written: Any, told: set[type[Section]], usual: Mapping[type[Section], Mapping[str, Any]]
) -> Iterator[str]:
    """The lines of a section, or of a mapping or list of sections; none for other values."""
    if isinstance(value, Section):
        yield from _lines(value, written, told, usual)
    elif isinstance(value, Mapping) and any(isinstance(one, Section) for one in value.values()):
        for name, one in value.items():
            inner = list(_lines(one, written[name], told, usual))
            yield f"{name}:" if inner else f"{name}: {{}}"
            yield from (f"  {line}" for line in inner)
    elif isinstance(value, tuple) and any(isinstance(one, Section) for one in value):
        for one, each in zip(value, written, strict=True):
            yield "-"
            yield from (f"  {line}" for line in _lines(one, each, told, usual))


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=ENDLESS, allow_unicode=True)[1:-2]
