"""`python -m service`: see `service.cli`."""

import os
import sys

if __name__ == "__main__":
    # gRPC reads this when it is imported. Its core would write lines of its own among our logs, with addresses in them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from service.cli import main

    sys.exit(main())
