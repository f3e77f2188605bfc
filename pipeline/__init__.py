"""StackGAN: from a sentence to a 256x256 picture, as a pipeline that can be rerun, compared and trusted."""

import os
import sys

if os.name != "posix":  # ray and DVC run there, but no lock of ours: fcntl is missing
    sys.exit("error: StackGAN runs on Linux and macOS; on Windows run it in WSL (README.md, Supported systems)")
