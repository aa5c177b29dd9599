"""Gives a group more slots while those that it has go on running: an RPC interface inside supervisord.

supervisord's own way to a larger `numprocs` is to stop the whole group and to start it again.
"""

from __future__ import annotations

from typing import Any

from supervisor.rpcinterface import Faults, RPCError
from supervisor.states import STOPPED_STATES


class SlotsInterface:
    """XML-RPC methods below `slots.`."""

    def __init__(self, supervisord: Any) -> None:
        self._supervisord = supervisord

    def declare(self, name: str) -> int:
        """Read the configuration again, and add the group, or the slots that it has not yet; return how many it has.

        Slots that it should not have any more go, unless they have a process. A group with another command keeps what
        it has until it is removed.
        """
        try:
            self._supervisord.options.process_config(do_usage=False)
        except ValueError as error:
            raise RPCError(Faults.CANT_REREAD, str(error)) from error
        config = next((one for one in self._supervisord.options.process_group_configs if one.name == name), None)
        if config is None:
            raise RPCError(Faults.BAD_NAME, name)
        if not self._supervisord.add_process_group(config):
            _add_missing(self._supervisord.process_groups[name], config)
            _drop_surplus(self._supervisord.process_groups[name], config)
        return len(self._supervisord.process_groups[name].processes)


def _add_missing(group: Any, config: Any) -> None:
    for process in config.process_configs:
        if process.name not in group.processes:
            process.create_autochildlogs()
            group.processes[process.name] = process.make_process(group)
            group.config.process_configs.append(process)


def _drop_surplus(group: Any, config: Any) -> None:
    wanted = {process.name for process in config.process_configs}
    for name, process in list(group.processes.items()):
        if name not in wanted and process.get_state() in STOPPED_STATES:
            del group.processes[name]
            group.config.process_configs.remove(process.config)


def make_interface(supervisord: Any, **options: str) -> SlotsInterface:
    """`supervisor.rpcinterface_factory` of the section `[rpcinterface:slots]`."""
    return SlotsInterface(supervisord)
