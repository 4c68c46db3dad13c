"""How much the libraries say in a command; they are imported when it is called."""

import logging
import warnings

from peft_bidora import launched


def quiet_libraries() -> None:
    """Let the libraries say what is wrong, and nothing else; of several processes the first alone."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    if not launched.is_first():
        logging.disable(logging.WARNING)
    hub_logging.disable_propagation()  # it has a handler of its own, and would say all twice
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of optional kernels at every start
    transformers_logging.disable_progress_bar()  # of a second, for each file of weights that is written
    # peft 0.21 asks a model for an attribute that transformers 5 deprecates.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
