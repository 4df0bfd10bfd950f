"""From folders of collected pictures to a data set: scan, clean, group, split, pack, batch."""
