from typing import NamedTuple
class Curve(NamedTuple):
    passes: list[int]
    losses: list[float]
    num_weights: int
def draw_race(*a): ...
def draw_search(*a): ...
