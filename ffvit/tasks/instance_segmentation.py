"""Boxes and masks of objects: detection whose objects are scored by their masks too."""

from ffvit.tasks.detection import Detection


class InstanceSegmentation(Detection):
    """Mask R-CNN of ffvit.models.dense: the headline is COCO's average precision of masks."""

    parts = ("box", "mask")


TASK = InstanceSegmentation
