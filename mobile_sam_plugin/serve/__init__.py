"""The HTTP service of ``mobile-sam serve``, on the :mod:`~mobile_sam_plugin.engine`.

:mod:`.api` has the endpoints, :mod:`.schemas` what they take and give, :mod:`.answers` computes,
:mod:`.gate` lets requests in, :mod:`.telemetry` logs and counts them, and :mod:`.label_studio`
speaks the protocol of Label Studio's ML backends. Nothing here imports torch.
"""

from ..errors import MissingExtra

try:
    import fastapi as fastapi
    import httpx as httpx
    import prometheus_client as prometheus_client
    import python_multipart as python_multipart
    import uvicorn as uvicorn
except ImportError as error:
    raise MissingExtra.of("the libraries of the service", "serve") from error
