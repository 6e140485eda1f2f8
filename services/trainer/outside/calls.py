"""The gRPC methods with which a rollout service brings the groups that agents sampled in sessions."""

from __future__ import annotations

from typing import Any

import grpc
from pydantic import ValidationError

from cepo.errors import CepoError, PolicyError, UserError, first_mistake
from cepo.messages.wire import to_proto
from cepo.pb.cepo.v1 import services_pb2
from cepo.service.chassis import abort
from services.trainer.outside.intake import Intake
from services.trainer.outside.sent import SentGroup


class SessionCalls:
    """`TrainerService.Terms` and `TrainerService.TakeGroup`."""

    def __init__(self, intake: Intake | None) -> None:
        """Serves a run.

        Args:
            intake: None for a run that samples its own responses, which refuses both calls.
        """
        self._intake = intake

    async def terms(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """How the next group is to be sampled."""
        try:
            return to_proto(self._open().terms())
        except CepoError as error:
            await abort(context, error)

    async def take(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """`POST /v1/groups` as a gRPC call."""
        try:
            sent = SentGroup.model_validate_json(request.json)
            place = await self._open().take(sent)
            return services_pb2.OutsidePlace(json=place.model_dump_json())
        except ValidationError as error:
            await abort(context, UserError(first_mistake(error.errors())))
        except CepoError as error:
            await abort(context, error)

    def _open(self) -> Intake:
        if self._intake is None:
            raise PolicyError('the run samples its own responses; sessions need a run with data.source="groups"')
        return self._intake
