"""Train the example and show what it has learnt: python3 -m examples.transformer_example.run CONFIG [KEY=VALUE ...]"""

import sys
from pathlib import Path

from scaling.core import run_program, runner_main
from scaling.transformer import Sampling, TransformerConfig, TransformerInferenceModule, prepare_data
