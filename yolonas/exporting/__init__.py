"""Writers of other runtimes' files, one module per format, and what every such file says about itself (`spec`)."""
