"""A small synthetic world of gateway customers, written as raw logs in their native formats.

It knows nothing of parsers or detections, and they know nothing of it: what was planted stands in ``truth.json`` only.
"""

from flows.world.world import World, write_world

__all__ = ["World", "write_world"]
