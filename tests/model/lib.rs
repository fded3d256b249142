//! Nothing: the models are tests, one file each.
