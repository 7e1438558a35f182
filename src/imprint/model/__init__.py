import logging


def _says_more(record: logging.LogRecord) -> bool:
    # bitsandbytes, which PEFT imports where it is installed, warns of a package that would only make inference faster
    return "kernels-community" not in record.getMessage()


logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_says_more)
