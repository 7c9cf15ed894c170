"""Packages: what servers are sold as."""

from clients.gen.backupmanager.v1 import access_level_pb2, package_service_pb2_grpc
from clients.gen.backupmanager.v1 import package_service_pb2 as messages
from controller import packages
from controller.services import check, convert, convert_hosts, paging
from controller.services.parts import Context, Parts


class PackageServicer(package_service_pb2_grpc.PackageServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def CreatePackage(
        self, request: messages.CreatePackageRequest, context: Context
    ) -> messages.CreatePackageResponse:
        name = check.title("name", request.name, optional=False)
        record = await self._parts.database.run(packages.create, name, _level(request.default_level), self._parts.now())
        return messages.CreatePackageResponse(package=convert_hosts.package(record))

    async def ListPackages(
        self, request: messages.ListPackagesRequest, context: Context
    ) -> messages.ListPackagesResponse:
        page = paging.page("packages", (), request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(packages.list_packages, after=page.after, limit=page.size + 1)
        filled = paging.fill(page, rows, convert_hosts.package, lambda row: (row.name,))
        return messages.ListPackagesResponse(packages=filled.messages, next_page_token=filled.next_page_token)

    async def GetPackage(self, request: messages.GetPackageRequest, context: Context) -> messages.GetPackageResponse:
        record = await self._parts.database.run(packages.find, check.reference("package_id", request.package_id))
        return messages.GetPackageResponse(package=convert_hosts.package(record))

    async def UpdatePackage(
        self, request: messages.UpdatePackageRequest, context: Context
    ) -> messages.UpdatePackageResponse:
        reference = check.reference("package.package_id", request.package.package_id)
        etag = check.title("package.etag", request.package.etag)
        values = {
            "name": lambda: check.title("package.name", request.package.name, optional=False),
            "default_level": lambda: _level(request.package.default_level),
        }
        changes = {path: values[path]() for path in sorted(check.mask(request.update_mask, values))}
        record = await self._parts.database.run(packages.update, reference, changes, etag, self._parts.now())
        return messages.UpdatePackageResponse(package=convert_hosts.package(record))

    async def DeletePackage(
        self, request: messages.DeletePackageRequest, context: Context
    ) -> messages.DeletePackageResponse:
        reference = check.reference("package_id", request.package_id)
        await self._parts.database.run(packages.delete, reference, self._parts.now())
        return messages.DeletePackageResponse()


def _level(number: int) -> str:
    return convert.enum_word(access_level_pb2.AccessLevel.DESCRIPTOR, number)
