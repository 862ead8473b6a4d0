"""The objectives under the name users look for: ``kwise.losses.plackett_luce(rewards, ranks, lists)``."""

from kwise.objective import OBJECTIVES as OBJECTIVES
from kwise.objective import adjacent_pairs as adjacent_pairs
from kwise.objective import all_pairs as all_pairs
from kwise.objective import centring_penalty as centring_penalty
from kwise.objective import davidson as davidson
from kwise.objective import margin_pairs as margin_pairs
from kwise.objective import objective as objective
from kwise.objective import plackett_luce as plackett_luce
from kwise.objective import rao_kupper as rao_kupper
from kwise.objective import scaled_pairs as scaled_pairs
from kwise.objective import top1 as top1
