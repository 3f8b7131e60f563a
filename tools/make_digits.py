"""Write scikit-learn's 1,797 real handwritten digits as PNG files, with a subfolder for each class.

Usage: python tools/make_digits.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

try:
    from sklearn.datasets import load_digits
except ModuleNotFoundError:
    sys.exit("this script needs scikit-learn: pip install scikit-learn")


def main(folder: Path) -> None:
    images, labels = load_digits(return_X_y=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), (pixels.reshape(8, 8) * (255 / 16)).astype(np.uint8))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
