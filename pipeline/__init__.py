"""StackGAN: from a sentence to a 256x256 picture, as a pipeline that can be rerun, compared and trusted."""

import os
import sys

if os.name != "posix":  # our file locks need fcntl
    sys.exit("error: StackGAN runs on Linux and macOS; on Windows run it in WSL (README.md, Supported systems)")
