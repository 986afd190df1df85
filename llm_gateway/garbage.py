"""The garbage collector of a long-lived process, told how little there is for it to do."""

import gc
from typing import Final

OBJECTS: Final = 20_000  # made and not freed between two collections


def collect_rarely() -> None:
    """Leave what lives as long as the process out of every garbage collection.

    A call makes some hundred objects and no cycle that outlives it; without this each collection
    walks every module that was imported, several times a second under load. To be called once all
    is made that stays.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS, 20, 20)
