# mobile-sam serve on a CPU. Build: docker build -t mobile-sam .
# Run: docker run -p 8000:8000 -e MOBILE_SAM_TOKEN=... mobile-sam
FROM python:3.12-slim AS build
WORKDIR /build
COPY . .
# pycocotools has no wheel for every machine; what compiles it stays in this stage.
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev \
    && sh docker/install.sh /opt/mobile-sam

FROM python:3.12-slim
COPY --from=build /opt/mobile-sam /opt/mobile-sam
RUN useradd --system --uid 10001 --create-home mobile-sam && mkdir /cache /images /weights \
    && chown mobile-sam /cache
USER mobile-sam
ENV PATH=/opt/mobile-sam/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 MOBILE_SAM_CHECKPOINT=bundled
# Embeddings on disk; images that requests name by their paths; other weights.
VOLUME ["/cache", "/images", "/weights"]
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v1/health', timeout=4)"]
# The shell passes further options on, and SIGTERM reaches the server itself.
ENTRYPOINT ["sh", "-c", "exec mobile-sam serve --host 0.0.0.0 --root /images --cache-dir /cache --checkpoint \"$MOBILE_SAM_CHECKPOINT\" \"$@\"", "mobile-sam"]
