"""Array annotations: `Float[Tensor, "b d"]` is checked by the tests through jaxtyping, and only text without it.

The letters are the same everywhere: b batch, n set, c h w image, k classes, d features, t steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int64, UInt8
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0] if isinstance(item, tuple) else item

        Bool = Float = Int64 = UInt8 = _Unchecked

__all__ = ["Bool", "Float", "Int64", "UInt8"]
