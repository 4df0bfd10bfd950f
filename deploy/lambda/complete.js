// An osls plugin that adds to the CloudFormation template what osls itself cannot express.
'use strict';

class Complete {
  constructor(serverless) {
    this.service = serverless.service;
    this.hooks = { 'after:aws:package:finalize:mergeCustomProviderResources': () => this.complete() };
  }

  complete() {
    const resources = this.service.provider.compiledCloudFormationTemplate.Resources;
    const named = (type) => Object.keys(resources).filter((name) => resources[name].Type === type);
    for (const [type, error] of Object.entries(this.service.custom.gatewayErrors)) {
      resources[`GatewayResponse${type.replace(/_/g, '')}`] = this.gatewayResponse(type, ...error);
    }
    this.reserveConcurrency(named('AWS::Lambda::Function').map((name) => resources[name]));
    for (const name of named('AWS::IAM::Role')) this.allowKeeping(resources[name]);
    for (const name of named('AWS::ApiGateway::Deployment')) {
      this.throttle(resources[name], named('AWS::ApiGateway::GatewayResponse'));
    }
    for (const name of named('AWS::Lambda::Permission')) {
      if (resources[name].Properties.FunctionUrlAuthType) {
        resources[`${name}Invoke`] = this.invokePermission(resources[name]);
      }
    }
  }

  // Throttles the stage. It is deployed after the gateway responses, which it would otherwise lack.
  throttle(deployment, responses) {
    const { rate, burst } = this.service.custom.throttling;
    deployment.Properties.StageDescription = {
      ThrottlingRateLimit: Number(rate),
      ThrottlingBurstLimit: Number(burst),
    };
    deployment.DependsOn = [...deployment.DependsOn, ...responses];
  }

  // Without the CORS headers a page would see a network error instead of the gateway's error.
  gatewayResponse(type, status, problem, message) {
    const text = message ? JSON.stringify(message) : '$context.error.messageString';
    const error = `{"status": ${status}, "problem": "${problem}", "message": ${text}}`;
    const headers = {
      'Access-Control-Allow-Origin': this.service.custom.origin,
      'Access-Control-Allow-Headers': 'Authorization, Content-Type, X-API-Key, X-Request-Id, X-Do-Not-Keep',
      'Access-Control-Allow-Methods': 'GET, HEAD, POST, OPTIONS',
      'Access-Control-Expose-Headers': 'X-Request-Id, Retry-After',
      ...(problem === 'busy' && { 'Retry-After': '1' }),
    };
    const parameters = Object.entries(headers).map(([name, value]) =>
      [`gatewayresponse.header.${name}`, `'${value}'`]);
    return {
      Type: 'AWS::ApiGateway::GatewayResponse',
      Properties: {
        RestApiId: { Ref: 'ApiGatewayRestApi' },
        ResponseType: type,
        // A status for a default type would replace the statuses of all errors that it covers.
        ...(!type.startsWith('DEFAULT') && { StatusCode: String(status) }),
        ResponseParameters: Object.fromEntries(parameters),
        ResponseTemplates: {
          'application/json': `{"error": ${error}, "request_id": "$context.requestId"}`,
        },
      },
    };
  }

  // Reserved concurrency is the only limit of a function URL, which has no throttling.
  reserveConcurrency(functions) {
    const { concurrency } = this.service.custom;
    if (concurrency === '') return;
    for (const { Properties } of functions) {
      Properties.ReservedConcurrentExecutions = Number(concurrency);
    }
  }

  // The function may write the images that it keeps, and read none of them.
  allowKeeping({ Properties }) {
    Properties.Policies[0].PolicyDocument.Statement.push(...this.service.custom.keepStatements);
  }

  // Function URLs created since October 2025 need a second permission.
  invokePermission(permission) {
    const { FunctionName, Principal } = permission.Properties;
    const Action = 'lambda:InvokeFunction';
    return {
      ...permission,
      Properties: { FunctionName, Principal, Action, InvokedViaFunctionUrl: true },
    };
  }
}

module.exports = Complete;
