"""The wide world: many tenants, five services each, harmless events that look alike, and campaigns A to G."""

from flows.world.wide.writing import write_wide

__all__ = ["write_wide"]
