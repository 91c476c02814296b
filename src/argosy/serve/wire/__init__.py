"""What the processes of a node tell each other: channels, frames, tables, counters. Each side imports these alone."""
