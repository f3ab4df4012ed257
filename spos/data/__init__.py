"""Images in, batches out: folders, splits, checks, augmentation and the two loaders.

Import the modules themselves; `folder`, `split`, `digits` and `check` load no torch.
"""
