"""The stages of `pretrain_scenes.py`, one file each."""
