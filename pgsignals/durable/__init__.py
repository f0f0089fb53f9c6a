"""The log, and the groups that handle what is in it. What stands here imports from what stands above it.

schema        the log's tables and functions: how rows get there, and who is woken
line          connections on which nobody waits for ever
reading       the log is read by snapshots: positions, windows, horizons
groups        groups, partitions, leases: the statements
failures      what could not be handled is parked, or a dead letter: the statements
identity      whose transaction ids the log has
rhythm        when whoever reads the log looks again
gate          who rings while much is written
tail          events for those who have no group
positions     how far a worker has read in each of its partitions
holding       a worker's connection, and its share of the partitions
handling      the receivers are called
decoding      rows become events of the group
pieces        what comes next in partitions that are at one position
parking       what the group has parked, and the pause where all fails
default       how a default group handles a piece: at least once
atomic        how an atomic group does: exactly once
retrying      parked events are tried again
rounds        a worker goes through all its partitions
worker        the thread that does, and begins anew whatever goes wrong
housekeeping  delayed messages are appended, old events are deleted
workers       those of a process, and the pulse that keeps their leases
control       what people do with groups: look, pause, send back, give up
once          for receivers that are not to do a thing twice
"""
