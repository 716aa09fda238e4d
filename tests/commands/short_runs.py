"""Command lines that train and evaluate within seconds."""

TINY = ["--gin_file=models/t5_1_1/tiny.gin", "--gin.VOCAB_ROWS=320"]
SMALLER = [f"--gin.t5_config.T5Config.{name}" for name in ("embed_dim=16", "num_heads=2", "head_dim=8", "mlp_dim=32")]
MODEL = [*TINY, *SMALLER]
SHORT = ["--gin.BATCH_SIZE=8", "--gin.WARMUP_STEPS=1", "--gin.LOG_EVERY=1", "--gin.NUM_SHAPES=1", "--gin.WINDOW=4"]
SHORT += ["--gin.SAVE_EVERY=2"]


def train_words(store, run_dir, *more):
    """Returns the command line of a short training on one device."""
    places = [f"--gin.STORE={store}", f"--gin.RUN_DIR={run_dir}"]
    return ["train", *MODEL, "--gin_file=runs/train.gin", "--gin_file=mesh/cpu1.gin", *places, *SHORT, *more]


def evaluate_words(store, run_dir, *more):
    """Returns the flags of a short evaluation."""
    places = [f"--gin.STORE={store}", f"--gin.RUN_DIR={run_dir}"]
    return [*places, "--gin.MAX_TOKENS=4", "--gin.MAX_EXAMPLES=2", "--gin.BATCH_SIZE=4", *more]
