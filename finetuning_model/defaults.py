"""What stage 3's flags default to, by what a training starts from."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Defaults:
    """Values of the flags that are not given.

    Attributes:
        num_train_epochs: passes over the rows.
        learning_rate: of the top layer.
        head_speed: how much faster than the top layer the head learns.
        early_stopping_patience: evaluations without a better validation loss; 0 keeps the last weights.
    """

    num_train_epochs: float
    learning_rate: float
    head_speed: float
    early_stopping_patience: int


ENCODER = Defaults(num_train_epochs=1.0, learning_rate=3e-4, head_speed=4, early_stopping_patience=3)  # a fresh head
ROUTER = Defaults(
    num_train_epochs=4, learning_rate=1e-4, head_speed=1, early_stopping_patience=0
)  # a head that knows much already; of few outcomes, validation rows are too few to stop by
FEW_OUTCOMES = replace(ROUTER, num_train_epochs=2)  # beside like prompts the rows themselves come 2 to 4 times an epoch
MAX_LENGTH = 256  # tokens, where no router's own length says otherwise
FEW_ROWS = 1_000  # to go on from a router with: more teach enough without prompts of the sample
LIKE_PROMPTS = 800  # of the sample, which few rows label besides
SMOOTHED_ROWS = 3_000  # whose labels lean on rows like them, at most: the time grows with their third power
MANY_ROWS = 20_000  # enough to train every layer
