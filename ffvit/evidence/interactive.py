"""Sliders where a person works in JupyterLab; a picture everywhere else, in papermill and in the tests."""

import os
from collections.abc import Callable

import IPython.display
import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def in_jupyterlab() -> bool:
    """Whether this kernel belongs to an open notebook: Jupyter's server tells it which; papermill starts kernels itself."""
    return "JPY_SESSION_NAME" in os.environ


def explore(draw: Callable[..., Figure], otherwise: Callable[[], Figure], **most: int) -> None:
    """In JupyterLab, a slider from 1 to `most` for each argument of `draw`; elsewhere what `otherwise` draws."""
    if not in_jupyterlab():
        return _show(otherwise())
    sliders = {name: ipywidgets.IntSlider(1, 1, last, continuous_update=False) for name, last in most.items()}
    shown = ipywidgets.interactive_output(lambda **chosen: _show(draw(**chosen)), sliders)
    for name, slider in sliders.items():
        slider.description = name
    IPython.display.display(ipywidgets.VBox([ipywidgets.HBox([*sliders.values()]), shown]))


def _show(figure: Figure) -> None:
    IPython.display.display(figure)
    plt.close(figure)
