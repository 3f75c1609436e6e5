"""Other words for the scripts' settings and their values, by which support/settings.py suggests what was meant."""

if __name__ == "__main__":
    raise SystemExit("support/synonyms.py is a module, not a script: every script uses it")

# Former names of settings and values, for the error message.
RENAMED = {
    "clip_norm": "max_grad_norm", "average": "ema_decay", "input": "normalize", "reduce": "global_pool",
    "flip_average": "tta flip", "no_flip_average": "tta none", "batch_norm": "norm batch", "no_batch_norm": "norm none",
    "neighbours": "neighbors",
}  # fmt: skip
RENAMED_VALUES = {"one_cycle": "linear", "triangle": "linear", "standard": "global", "pixel": "per_pixel", "flatten": "none"}

# Other words for a setting, and the settings that they may mean: those that the script has are suggested.
MEANINGS = {
    "lr eta step_size initial_lr max_lr peak_lr learning_rate_init": "learning_rate head_learning_rate joint_learning_rate",
    "head_lr mlp_lr mlp_learning_rate": "head_learning_rate joint_learning_rate",
    "joint_lr": "joint_learning_rate",
    "epoch n_epochs num_epochs max_epochs max_iter iterations passes": "epochs head_epochs",
    "mlp_epochs": "head_epochs",
    "bs batch mini_batch": "batch_size head_batch_size",
    "depth layers num_layers hidden_layers hidden_layer_sizes hidden_size hidden_dim width units neurons":
        "hidden channels head_hidden",
    "mlp_hidden": "head_hidden",
    "filters convolutions conv maps feature_maps": "channels",
    "kernel kernel_size filter_size": "kernel_sizes",
    "pooling max_pool": "pool pool_after",
    "gap global_average_pooling": "global_pool",
    "fully_connected dense": "fc hidden head_hidden",
    "act nonlinearity": "activation",
    "bn batch_norm batch_normalization layer_norm normalization": "norm",
    "standardize preprocessing normalise": "normalize",
    "initializer initialization weight_init": "init",
    "criterion objective loss_function": "loss",
    "optim opt solver": "optimizer",
    "mom beta beta1": "momentum",
    "scheduler lr_scheduler lr_schedule": "schedule",
    "warmup_epochs warmup_steps pct_start": "warmup",
    "clip clip_grad clip_grad_norm grad_clip gradient_clipping max_norm": "max_grad_norm",
    "ema swa weight_averaging": "ema_decay",
    "wd decay": "weight_decay",
    "alpha penalty regularization": "l2 weight_decay",
    "drop drop_rate dropout_rate dropout_p": "dropout fc_dropout",
    "smoothing": "label_smoothing",
    "early_stopping early_stop n_iter_no_change": "patience",
    "augment augmentation data_augmentation aug transforms": "flip shift erase",
    "mirror hflip horizontal_flip": "flip",
    "translate crop random_crop jitter": "shift",
    "cutout random_erasing": "erase",
    "test_time_augmentation": "tta",
    "random_state random_seed manual_seed": "seed",
    "runs repeats trials num_seeds n_seeds": "seeds",
    "gpu cuda mps cpu": "device",
    "amp bf16 fp16 half mixed_precision dtype": "precision",
    "continue checkpoint restart": "resume",
    "smoke smoke_test fast debug dry_run": "quick",
    "out output out_dir save_dir log_dir": "output_dir",
    "data data_path root": "data_dir",
    "joint end_to_end freeze frozen": "training",
    "cnn pretrained": "backbone",
}
VALUE_MEANINGS = {
    "kaiming": "he", "glorot": "xavier", "cross_entropy": "softmax", "ce": "softmax", "bce": "sigmoid", "bn": "batch",
    "ln": "layer", "sgd": "nesterov", "mean": "average", "avg": "average", "gpu": "cuda", "bf16": "bfloat16",
    "fp32": "float32", "end_to_end": "joint", "fashion": "fashion-mnist",
}  # fmt: skip
