"""What each architecture costs, as tests count it on the meta device: counting takes minutes, this table none."""

from __future__ import annotations

#: Parameters in millions, and billions of multiply-adds of one clip or image (as the papers count; an MAE's at its own
#: mask ratio).
COSTS: dict[str, tuple[float, float]] = {
    "hiera_tiny_224": (27.91, 4.9),
    "hiera_small_224": (35.01, 6.4),
    "hiera_base_224": (51.52, 9.4),
    "hiera_base_plus_224": (69.9, 12.6),
    "hiera_large_224": (213.74, 40.3),
    "hiera_huge_224": (672.78, 124.7),
    "hiera_nano_16x64": (2.67, 0.4),
    "hiera_tiny_16x224": (27.48, 50.9),
    "hiera_small_16x224": (34.58, 69.5),
    "hiera_base_16x224": (51.09, 101.7),
    "hiera_base_plus_16x224": (69.39, 132.3),
    "hiera_large_16x224": (213.09, 412.1),
    "hiera_huge_16x224": (671.63, 1157.8),
    "hiera_small_abswin_256": (34.36, 8.3),
    "hiera_base_abswin_256": (51.27, 12.4),
    "hiera_tiny_1024": (26.85, 142.4),
    "hiera_small_1024": (33.95, 176.2),
    "hiera_base_plus_1024": (68.68, 319),
    "hiera_large_1024": (212.15, 906.1),
    "mae_hiera_tiny_224": (55.02, 8),
    "mae_hiera_small_224": (62.12, 8.6),
    "mae_hiera_base_224": (78.64, 10.1),
    "mae_hiera_base_plus_224": (97.58, 11.8),
    "mae_hiera_large_224": (242.88, 24.3),
    "mae_hiera_huge_224": (710.08, 64.9),
    "mae_hiera_nano_16x64": (28.69, 3.5),
    "mae_hiera_tiny_16x224": (55.75, 65.9),
    "mae_hiera_small_16x224": (62.85, 67.1),
    "mae_hiera_base_16x224": (79.37, 70.3),
    "mae_hiera_base_plus_16x224": (98.32, 73.9),
    "mae_hiera_large_16x224": (243.62, 100),
    "mae_hiera_huge_16x224": (710.86, 183.7),
}
