"""The union of all teachers in a recipe: the built-in ones by their kind, and those that plugins add."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from tsd.recipe import additions
from tsd.recipe.additions import AddedTeacher
from tsd.recipe.section import Section, nearest, validated
from tsd.recipe.teachers import ApiTeacher, LocalTeacher, RulesTeacher, VllmTeacher

# by kind, as pydantic names them in error locations
TEACHERS: dict[str, type[Section]] = dict(
    zip(additions.KINDS, (RulesTeacher, LocalTeacher, ApiTeacher, VllmTeacher), strict=True)
)
BuiltIn = Annotated[RulesTeacher | LocalTeacher | ApiTeacher | VllmTeacher, Field(discriminator="kind")]


def kinds() -> dict[str, type[Section]]:
    """The settings of all teachers by kind, built-in and added by plugins."""
    return {**TEACHERS, **{kind: entry.settings for kind, entry in additions.TEACHERS.items()}}


def _schema(_: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """The schema of a teacher: one of a plugin by its own settings, any other by its kind."""
    return core_schema.no_info_wrap_validator_function(
        _or_added,
        handler.generate_schema(BuiltIn),
        serialization=core_schema.wrap_serializer_function_ser_schema(_written, info_arg=True),
    )


def _or_added(value: Any, check: Callable[[Any], Any]) -> Any:
    """Validate a teacher; one of a plugin by the settings that it was added with."""
    if isinstance(value, AddedTeacher):
        return value
    kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in additions.TEACHERS:
        settings = additions.TEACHERS[kind].settings
        additions.require_found_by_name("teacher", kind, settings)
        return validated(settings, value, kind)
    if isinstance(value, dict) and "kind" in value and not (isinstance(kind, str) and kind in TEACHERS):
        wrong = PydanticCustomError(
            "value_error", "{said}", {"said": f"there is no such teacher{_nearest(str(kind))}"}
        )
        raise ValidationError.from_exception_data(
            "teacher", [InitErrorDetails(type=wrong, loc=("kind",), input=kind)]
        )
    return check(value)


def _nearest(kind: str) -> str:
    """The nearest kind, or all of them; plugins may add more."""
    known = nearest(kind, list(kinds()))
    return f"{known.removesuffix(')')}, or of a plugin: name it in plugins)" if known.endswith(")") else known


def _written(teacher: Any, write: SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
    return teacher.model_dump(mode=info.mode) if isinstance(teacher, AddedTeacher) else write(teacher)


Teacher = Annotated[
    RulesTeacher | LocalTeacher | ApiTeacher | VllmTeacher | AddedTeacher, GetPydanticSchema(_schema)
]
