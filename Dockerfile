# The image: one static binary on nothing. It builds with BuildKit and with
# the classic builder of Engine 20.10. Without a registry, tools/image lets the
# host's Go make what the stage "build" makes.
ARG GO_IMAGE=golang:1.26

FROM scratch AS base
ARG VERSION=dev
ARG REVISION=
LABEL org.opencontainers.image.title="backupd" \
      org.opencontainers.image.description="Backs up the volumes of a Docker Compose stack, and seeds fresh ones" \
      org.opencontainers.image.source="https://github.com/disko/backupd" \
      org.opencontainers.image.documentation="https://github.com/disko/backupd#readme" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# Others wait for a healthy backup service before they start, so it is asked
# often; a seed may take a day and is "starting" until then, never "unhealthy".
HEALTHCHECK --interval=2s --timeout=10s --start-period=24h --retries=3 CMD ["/backupd", "health"]
ENTRYPOINT ["/backupd"]
CMD ["serve"]
# No VOLUME: an anonymous state volume would be lost with each new container,
# and with it the memory of what was seeded. The Compose file names one.

# The classic builder knows no BUILDPLATFORM; "linux" is its own.
FROM --platform=${BUILDPLATFORM:-linux} ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY tools/binary tools/rootfs tools/
ARG VERSION=dev
ARG TARGETARCH=
ARG TARGETVARIANT=
RUN VERSION="$VERSION" GOARCH="$TARGETARCH" GOARM="${TARGETVARIANT#v}" tools/binary /backupd
RUN tools/rootfs /backupd /rootfs

FROM base
COPY --from=build /rootfs /
