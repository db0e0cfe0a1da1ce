"""Which rotary embedding a config.json asks for, in either of its two spellings."""

from __future__ import annotations

from collections.abc import Callable

from .config_section import ConfigSection
from .rope import LinearRope, Llama3Rope, Rope, YarnRope


def read_rope(section: ConfigSection) -> Rope:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    empty = ConfigSection({}, section.file)
    rope = section.section("rope_parameters") or section.section("rope_scaling") or empty
    if rope.has_nested():
        key = "rope_parameters" if "rope_parameters" in section else "rope_scaling"
        raise section.refusal(key, "one set for all layers is supported, not one per layer type")
    for place in (section, rope):
        if place.number("partial_rotary_factor", 1.0) != 1.0:
            raise place.refusal("partial_rotary_factor", "partial rotation is not supported")
    theta = rope.number("rope_theta", section.number("rope_theta", 10_000.0))
    type_key = "rope_type" if "rope_type" in rope else "type"
    rope_type = rope.text(type_key, "default")
    if rope_type == "dynamic":
        raise rope.refusal(
            type_key,
            "its base changes with the length, so keys already in the cache would be wrong; "
            "use a linear, llama3 or yarn checkpoint, or remove the scaling",
        )
    if rope_type not in _ROPES:
        raise rope.refusal(type_key, f"not supported; there are {', '.join(_ROPES)}")
    return _ROPES[rope_type](section, rope, theta)


def _plain_rope(section: ConfigSection, rope: ConfigSection, theta: float) -> Rope:
    return Rope(theta)


def _linear_rope(section: ConfigSection, rope: ConfigSection, theta: float) -> Rope:
    return LinearRope(theta, rope.number("factor"))


def _llama3_rope(section: ConfigSection, rope: ConfigSection, theta: float) -> Rope:
    return Llama3Rope(
        theta,
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=_read_original_length(section, rope),
    )


def _yarn_rope(section: ConfigSection, rope: ConfigSection, theta: float) -> Rope:
    original_length = _read_original_length(section, rope)
    return YarnRope(
        theta,
        factor=rope.number("factor", section.integer("max_position_embeddings") / original_length),
        original_max_position_embeddings=original_length,
        attention_factor=rope.optional_number("attention_factor"),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        is_truncated=rope.boolean("truncate", True),
    )


def _read_original_length(section: ConfigSection, rope: ConfigSection) -> int:
    length = rope.integer(
        "original_max_position_embeddings", section.integer("max_position_embeddings")
    )
    return section.integer("original_max_position_embeddings", length)


_ROPES: dict[str, Callable[[ConfigSection, ConfigSection, float], Rope]] = {
    "default": _plain_rope,
    "linear": _linear_rope,
    "llama3": _llama3_rope,
    "yarn": _yarn_rope,
}
