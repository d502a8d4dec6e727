"""Other ways of forgetting than STEU on multi-label classifiers, under the names that results bear.

Each is called with its default settings here; the functions take others, which `functools.partial` can bind.
"""

from amnestic_unlearn.baselines.erasure import esc, leace
from amnestic_unlearn.baselines.head import bias_edit, head_only, zero_row
from amnestic_unlearn.baselines.layers import direct_suppression, gradient_ascent, influence
from amnestic_unlearn.baselines.relabel import delete, random_label, salun, scrub
from amnestic_unlearn.baselines.rows import embedding_only, random_tokens
from amnestic_unlearn.forgetting import Forget

BASELINES: dict[str, Forget] = {
    "bias-edit": bias_edit,
    "zero-row": zero_row,
    "head-only": head_only,
    "embedding-only": embedding_only,
    "random-tokens": random_tokens,
    "gradient-ascent": gradient_ascent,
    "direct-suppression": direct_suppression,
    "influence": influence,
    "random-label": random_label,
    "salun": salun,
    "scrub": scrub,
    "delete": delete,
    "leace": leace,
    "esc": esc,
}
